"""One job: how far it is, what went wrong, its files, and the buttons that move it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from html import escape

from nicegui import ui
from sqlalchemy import Connection

from bros_batch.db import ended_items, files, jobs
from bros_batch.db.states import ENDED_JOB, WITHOUT_RESULT, JobStatus
from bros_batch.db.tables import File, Job
from bros_batch.web.change_job import Change, change_job
from bros_batch.web.dashboard.fragments import (
    ago,
    badge,
    duration,
    ended_note,
    facts,
    number,
    progress_bar,
    table,
)
from bros_batch.web.dashboard.frame import Dashboard, frame, keep_fresh
from bros_batch.web.dashboard.rates import Rate
from bros_batch.web.errors import ApiError

SHOWN_FAILURES = 20
MAX_MESSAGE_CHARS = 300
BUTTONS: tuple[tuple[Change, str, frozenset[JobStatus]], ...] = (
    ("pause", "Pause", frozenset({JobStatus.IN_PROGRESS})),
    ("resume", "Resume", frozenset({JobStatus.PAUSED})),
    ("retry", "Retry failed lines", ENDED_JOB - {JobStatus.FAILED}),
    ("cancel", "Cancel", frozenset({JobStatus.VALIDATING, JobStatus.IN_PROGRESS, JobStatus.PAUSED})),
)


@dataclass(frozen=True, slots=True)
class Details:
    """What the page shows of a job."""

    job: Job
    input_file: File | None
    error_codes: dict[str, int]
    failures: list[ended_items.EndedItem]


def read_details(connection: Connection, job_id: str) -> Details | None:
    job = jobs.get_job(connection, job_id)
    if job is None:
        return None
    without_result = job.failed + job.cancelled + job.expired
    codes = ended_items.count_error_codes(connection, job_id) if without_result else {}
    failures = (
        ended_items.ended_page(connection, job_id, 0, SHOWN_FAILURES, *WITHOUT_RESULT)
        if without_result
        else []
    )
    return Details(job, files.get_file(connection, job.input_file_id), codes, failures)


def job_page(dashboard: Dashboard, job_id: str) -> None:
    with frame(dashboard, "/") as freshness:
        title = ui.html("", sanitize=False).classes("title")
        with ui.element("div").classes("actions"):
            buttons = {change: ui.button(label).props("outline no-caps") for change, label, _ in BUTTONS}
        body = ui.html("", sanitize=False)
        for button in buttons.values():
            button.set_visibility(False)

        async def refresh() -> None:
            details = await dashboard.state.read(lambda connection: read_details(connection, job_id))
            if details is None:
                title.set_content(f"<h1>No such job</h1><p>{escape(job_id)}</p>")
                return
            job, now_s = details.job, time.time()
            heading = escape(job.name or job.id)
            title.set_content(f'<h1>{heading} {badge(job.status)}</h1><p class="id">{escape(job.id)}</p>')
            body.set_content(details_html(details, dashboard.rates.observe(job, now_s), now_s))
            for change, _, statuses in BUTTONS:
                possible = job.status in statuses and (change != "retry" or bool(details.failures))
                buttons[change].set_visibility(possible)

        async def move(change: Change) -> None:
            try:
                await change_job(dashboard.state, job_id, change)
            except ApiError as error:
                ui.notify(error.message, type="negative")
            else:
                await refresh()

        with ui.dialog() as confirmation, ui.card():
            ui.label("Cancel this job? Finished lines keep their results; the others will not be run.")
            with ui.row().classes("justify-end w-full"):
                ui.button("Keep it", on_click=lambda: confirmation.submit(False)).props("flat no-caps")
                ui.button("Cancel the job", on_click=lambda: confirmation.submit(True)).props(
                    "no-caps color=negative"
                )

        async def cancel() -> None:
            if await confirmation:
                await move("cancel")

        buttons["pause"].on_click(lambda: move("pause"))
        buttons["resume"].on_click(lambda: move("resume"))
        buttons["retry"].on_click(lambda: move("retry"))
        buttons["cancel"].on_click(cancel)
        keep_fresh(freshness, refresh)


def details_html(details: Details, rate: Rate, now_s: float) -> str:
    job = details.job
    return "".join(
        (
            '<section class="panel">',
            f'<div class="big">{progress_bar(job)}</div>',
            facts(_figures(job, rate)),
            "</section>",
            _downloads(details),
            _problems(details),
            '<section class="panel"><h2>Job</h2>',
            facts(_settings(details, now_s)),
            "</section>",
        )
    )


def _figures(job: Job, rate: Rate) -> list[tuple[str, str]]:
    pairs = [
        ("Done", f"{number(job.succeeded)} of {number(job.total)}"),
        ("Failed", f'<span class="{"wrong" if job.failed else ""}">{number(job.failed)}</span>'),
    ]
    pairs += [("Cancelled", number(job.cancelled))] if job.cancelled else []
    pairs += [("Expired", number(job.expired))] if job.expired else []
    if rate.tokens_per_s is not None and rate.lines_per_s is not None:
        pairs.append(("Pace", f"{number(round(rate.tokens_per_s))} tok/s · {rate.lines_per_s:.1f} lines/s"))
    if rate.eta_s is not None:
        pairs.append(("Left", duration(rate.eta_s)))
    pairs.append(("Tokens in", number(job.prompt_tokens)))
    pairs.append(("Tokens out", number(job.output_tokens)))
    return pairs


def _settings(details: Details, now_s: float) -> list[tuple[str, str]]:
    job = details.job
    file = details.input_file
    pairs = [
        ("Model", escape(job.model)),
        ("Endpoint", escape(job.endpoint)),
        ("Input", escape(file.filename if file else job.input_file_id)),
        ("Created", ago(job.created_at, now_s)),
        ("Priority", str(job.priority)),
    ]
    if note := ended_note(job):
        pairs.append(("Time", note))
    if job.status not in ENDED_JOB:
        name = "Deadline" if job.deadline_at is not None else "Expires"
        pairs.append((name, f"in {duration(job.expires_at - now_s)}"))
    for name, value in job.defaults.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        pairs.append((escape(name), f"<code>{escape(_cut(shown))}</code>"))
    return pairs


def _downloads(details: Details) -> str:
    """The finished files, or what there is of them so far."""
    job = details.job
    links = []
    for label, file_id, status, count in (
        ("Results", job.output_file_id, "succeeded", job.succeeded),
        ("Errors", job.error_file_id, "failed", job.failed + job.cancelled + job.expired),
    ):
        name = f"{job.id}_{status}.jsonl"
        if file_id is not None:
            links.append(f'<a href="/v1/files/{escape(file_id)}/content" download="{name}">{label}</a>')
        elif count:
            url = f"/v1/batches/{escape(job.id)}/results?status={status}"
            links.append(f'<a href="{url}" download="{name}">{label} so far ({number(count)})</a>')
    if details.input_file is not None:
        links.append(f'<a href="/v1/files/{escape(job.input_file_id)}/content" download>Input</a>')
    return f'<nav class="downloads" aria-label="Downloads">{"".join(links)}</nav>' if links else ""


def _problems(details: Details) -> str:
    heads = ("Line", "Id", "Code", "What was wrong")
    if details.error_codes:
        codes = table(("Code", "Lines"), details.error_codes.items(), "codes")
        failed = (
            (line.line_no, line.custom_id, line.error_code, _cut(line.error_message))
            for line in details.failures
        )
        content = f"{codes}<h3>First lines without a result</h3>{table(heads, failed, 'failures')}"
    elif details.job.errors:
        unread = (
            (each.get("line"), "", each.get("code"), _cut(each.get("message"))) for each in details.job.errors
        )
        content = table(heads, unread, "failures")
    else:
        return ""
    return f'<section class="panel"><h2>Errors</h2>{content}</section>'


def _cut(message: str | None) -> str:
    return (message or "")[:MAX_MESSAGE_CHARS]
