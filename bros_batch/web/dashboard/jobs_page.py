"""The list of jobs, newest first, with a search, a filter by status, and live progress."""

from __future__ import annotations

import time
from urllib.parse import urlencode

from sqlalchemy import Connection
from starlette.requests import Request

from bros_batch.db import jobs
from bros_batch.db.states import JobStatus
from bros_batch.db.tables import Job
from bros_batch.web.app_state import app_state
from bros_batch.web.dashboard.job_words import STATUS_WORDS
from bros_batch.web.dashboard.rates import JobRates
from bros_batch.web.dashboard.rendering import Page

ROWS = 50
MAX_ROWS = 500  # the list is rendered each second, in about 0.05 ms per row
STATUSES = {each.value: STATUS_WORDS.get(each, each.value) for each in JobStatus}


async def read_jobs(request: Request, rates: JobRates) -> Page:
    """The jobs that the URL asks for: `search`, `status` and `rows`."""
    query = request.query_params
    search = query.get("search", "").strip()
    status = query.get("status", "")
    status = status if status in STATUSES else ""
    rows = query.get("rows", "")
    num_rows = min(max(int(rows), ROWS), MAX_ROWS) if rows.isdecimal() and len(rows) < 9 else ROWS

    def read(connection: Connection) -> list[Job]:
        return jobs.list_jobs(connection, limit=num_rows + 1, status=status or None, search=search or None)

    found = await app_state(request).read(read)
    now_s = time.time()
    more = {"search": search, "status": status, "rows": str(num_rows + ROWS)}
    values = {
        "now_s": now_s,
        "jobs": [(job, rates.observe(job, now_s)) for job in found[:num_rows]],
        "search": search,
        "status": status,
        "statuses": STATUSES,
        "more": f"/?{urlencode(more)}" if len(found) > num_rows else None,
        "max_rows": MAX_ROWS if num_rows == MAX_ROWS else None,
    }
    return Page("jobs.html", values, live=("listing",))
