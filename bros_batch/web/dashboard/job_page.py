"""One job: its progress, what went wrong, its files, and the buttons that change it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import get_args
from urllib.parse import quote

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from bros_batch.db import ended_items, files, jobs
from bros_batch.db.allowed_changes import Change, allowed_changes
from bros_batch.db.states import ENDED_JOB, WITHOUT_RESULT
from bros_batch.db.tables import File, Job
from bros_batch.db.waiting import waiting_reasons
from bros_batch.web.app_state import app_state
from bros_batch.web.change_job import change_job
from bros_batch.web.dashboard.rates import JobRates
from bros_batch.web.dashboard.rendering import Page
from bros_batch.web.errors import not_found

SHOWN_FAILURES = 20
MAX_MESSAGE_CHARS = 300


@dataclass(frozen=True, slots=True)
class Details:
    """What the page shows of a job from the database. `failures` are its first items without a result."""

    job: Job
    changes: list[Change]
    input_file: File | None
    error_codes: dict[str, int]
    failures: list[ended_items.EndedItem]
    waiting_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Download:
    """A link to a file, or to the lines that are known so far (`so_far` of them)."""

    label: str
    url: str
    filename: str
    so_far: int | None = None


def read_details(connection: Connection, job_id: str) -> Details | None:
    """A job's details, or None if there is no such job."""
    job = jobs.get_job(connection, job_id)
    if job is None:
        return None
    without_result = job.counts.without_result
    codes = ended_items.count_error_codes(connection, job_id) if without_result else {}
    failures = (
        ended_items.ended_page(connection, job_id, 0, SHOWN_FAILURES, *WITHOUT_RESULT)
        if without_result
        else []
    )
    changes = allowed_changes(connection, job)
    reason = waiting_reasons(connection, [job], time.time()).get(job_id)
    return Details(job, changes, files.get_file(connection, job.input_file_id), codes, failures, reason)


async def read_job(request: Request, rates: JobRates) -> Page:
    """The job that the path names."""
    job_id = request.path_params["job_id"]
    details = await app_state(request).read(lambda connection: read_details(connection, job_id))
    if details is None:
        return Page("404.html", {"heading": "No such job", "what": job_id}, status=404)
    now_s = time.time()
    return job_page(details, rates, now_s)


def job_page(details: Details, rates: JobRates, now_s: float) -> Page:
    """The page of a job at a time."""
    job = details.job
    values = {
        "now_s": now_s,
        "job": job,
        "input_file": details.input_file,
        "ended": job.status in ENDED_JOB,
        "rate": rates.observe(job, now_s),
        "changes": details.changes,
        "waiting_reason": details.waiting_reason,
        "downloads": downloads(details),
        "error_codes": details.error_codes,
        "failures": failures(details),
        "defaults": {name: cut(as_text(value)) for name, value in job.defaults.items()},
    }
    return Page("job.html", values, live=("heading", "actions", "details"))


def downloads(details: Details) -> list[Download]:
    """The finished files, or what is known of them so far."""
    job = details.job
    links = []
    for label, file_id, status, count in (
        ("Results", job.output_file_id, "succeeded", job.succeeded),
        ("Errors", job.error_file_id, "failed", job.counts.without_result),
    ):
        filename = f"{job.id}_{status}.jsonl"
        if file_id is not None:
            links.append(Download(label, f"/v1/files/{quote(file_id)}/content", filename))
        elif count:
            url = f"/v1/batches/{quote(job.id)}/results?status={status}"
            links.append(Download(label, url, filename, count))
    if details.input_file is not None:
        url = f"/v1/files/{quote(job.input_file_id)}/content"
        links.append(Download("Input", url, details.input_file.filename))
    return links


def failures(details: Details) -> list[tuple[object, str, object, str]]:
    """Line, id, code and message of the first items without a result, or of lines that made the whole file invalid."""
    if details.error_codes:
        return [
            (item.line_no, item.custom_id or "", item.error_code or item.status, cut(item.error_message))
            for item in details.failures
        ]
    return [(each.get("line"), "", each.get("code"), cut(each.get("message"))) for each in details.job.errors]


def as_text(value: object) -> str:
    """A default of a job as the page shows it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def cut(message: str | None) -> str:
    """The first MAX_MESSAGE_CHARS characters of a message."""
    return (message or "")[:MAX_MESSAGE_CHARS]


async def change(request: Request) -> Response:
    """Pause, resume, rerun or cancel a job. The response is empty for a script, and a redirect for a plain form."""
    job_id, name = request.path_params["job_id"], request.path_params["change"]
    if name not in get_args(Change):
        raise not_found("change", name, "change")
    await change_job(request, job_id, name)
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"/jobs/{quote(job_id)}", 303)
    return Response(status_code=204)
