"""The list of jobs, alive."""

from __future__ import annotations

import time

from nicegui import ui
from sqlalchemy import Connection

from bros_batch.db import jobs
from bros_batch.db.states import JobStatus
from bros_batch.db.tables import Job
from bros_batch.web.dashboard.fragments import STATUS_WORDS, job_row
from bros_batch.web.dashboard.frame import Dashboard, frame, keep_fresh

PAGE_JOBS = 50
HEAD = "<span>Job</span><span>Status</span><span>Progress</span><span>Pace</span><span>Created</span>"
EMPTY = (
    '<div class="empty"><p>No jobs yet.</p><p>Send one:</p>'
    '<code>bros-batch submit docs.jsonl --prompt "Summarise: {text}"</code></div>'
)


def jobs_page(dashboard: Dashboard) -> None:
    with frame(dashboard, "/") as freshness:
        with ui.element("div").classes("filters"):
            search = ui.input(placeholder="Name, id or model").props(
                'outlined dense clearable debounce="200"'
            )
            search.props('aria-label="Search"').classes("search")
            words = {"": "all", **{each.value: STATUS_WORDS.get(each, each.value) for each in JobStatus}}
            status = (
                ui.select(words, value="", label="Status").props("outlined dense").classes("status-filter")
            )
        listing = ui.html("", sanitize=False).classes("jobs")
        more = ui.button("Show more").props("flat").classes("more")
        shown = PAGE_JOBS

        def read(connection: Connection) -> list[Job]:
            return jobs.list_jobs(
                connection,
                limit=shown + 1,
                status=status.value or None,
                search=(search.value or "").strip() or None,
            )

        async def refresh() -> None:
            found = await dashboard.state.read(read)
            now_s = time.time()
            rows = [job_row(job, dashboard.rates.observe(job, now_s), now_s) for job in found[:shown]]
            if rows:
                content = f'<div class="job head">{HEAD}</div>{"".join(rows)}'
            elif search.value or status.value:
                content = '<div class="empty"><p>No job fits.</p></div>'
            else:
                content = EMPTY
            listing.set_content(content)
            more.set_visibility(len(found) > shown)

        async def show_more() -> None:
            nonlocal shown
            shown += PAGE_JOBS
            await refresh()

        more.on_click(show_more)
        more.set_visibility(False)
        search.on_value_change(refresh)
        status.on_value_change(refresh)
        keep_fresh(freshness, refresh)
