"""One job: its progress, its rows, what went wrong, its files, its log, and the buttons that change it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args
from urllib.parse import quote

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from bros_batch.addresses import without_password
from bros_batch.db import files, job_events, jobs, pace
from bros_batch.db.allowed_changes import Change, allowed_changes
from bros_batch.db.in_flight import InFlight, in_flight
from bros_batch.db.states import ENDED_JOB
from bros_batch.db.table_rows import File, Job, JobEvent, PaceMinute
from bros_batch.db.waiting import waiting_reasons
from bros_batch.documents.column_types import answer_types
from bros_batch.forecast import Forecast
from bros_batch.web.app_state import app_state
from bros_batch.web.change_job import change_job
from bros_batch.web.dashboard.chart import Chart, Series, Span, chart
from bros_batch.web.dashboard.error_groups import ErrorGroup, ErrorReports
from bros_batch.web.dashboard.history import MINUTE_S, Point, with_gaps
from bros_batch.web.dashboard.rendering import Page
from bros_batch.web.dashboard.table_download import FORMATS, can_write, file_name
from bros_batch.web.errors import not_found
from bros_batch.web.formats import duration, local_time, per_second
from bros_batch.web.job_forecasts import forecasts
from bros_batch.web.job_log import log_lines
from bros_batch.web.job_rates import JobRates
from bros_batch.web.owners import visible_owner

MAX_DEFAULT_CHARS = 2_000
PACE_SPAN_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Details:
    """What the page shows of a job from the database."""

    job: Job
    changes: list[Change]
    input_file: File | None
    errors: Sequence[ErrorGroup] = ()
    waiting_reason: str | None = None
    events: Sequence[JobEvent] = ()
    minutes: Sequence[PaceMinute] = ()
    forecast: Forecast | None = None
    in_flight: InFlight | None = None


@dataclass(frozen=True, slots=True)
class Download:
    """A link to a file, or to the lines that are known so far (`so_far` of them)."""

    label: str
    url: str
    filename: str
    so_far: int | None = None


def read_details(
    connection: Connection, job_id: str, reports: ErrorReports, rates: JobRates, owner: str | None = None
) -> Details | None:
    """A job's details, or None if there is no such job, or it is another owner's."""
    job = jobs.get_job(connection, job_id, owner)
    if job is None:
        return None
    now_s = time.time()
    return Details(
        job,
        allowed_changes(connection, job),
        files.get_file(connection, job.input_file_id),
        reports.of_job(connection, job),
        waiting_reasons(connection, [job], now_s).get(job_id),
        job_events.list_events(connection, job_id),
        pace.minutes_of(connection, pace.job_series(job_id), now_s - PACE_SPAN_S),
        forecasts(connection, rates.engine, [job], now_s).get(job_id),
        in_flight(connection, [job], now_s).get(job_id),
    )


async def read_job(request: Request, reports: ErrorReports) -> Page:
    """The job that the path names."""
    job_id = request.path_params["job_id"]
    state = app_state(request)
    seen = visible_owner(request)
    details = await state.read(
        lambda connection: read_details(connection, job_id, reports, state.rates, seen)
    )
    if details is None:
        return Page("404.html", {"heading": "No such job", "what": job_id}, status=404)
    now_s = time.time()
    return job_page(details, state.rates, now_s)


def job_page(details: Details, rates: JobRates, now_s: float) -> Page:
    """The page of a job at a time."""
    job = details.job
    row_states = [
        ("all rows", "", job.total),
        ("done", "succeeded", job.succeeded),
        ("failed", "failed", job.failed),
    ]
    row_states += [
        (name, name, getattr(job, name)) for name in ("cancelled", "expired") if getattr(job, name)
    ]
    values = {
        "now_s": now_s,
        "job": job,
        "input_file": details.input_file,
        "ended": job.status in ENDED_JOB,
        "rate": rates.observe(job, now_s),
        "forecast": details.forecast,
        "in_flight": details.in_flight,
        "input_name": input_name(details),
        "answer_columns": json.dumps(list(answer_types(job.defaults) or ())),
        "changes": details.changes,
        "waiting_reason": details.waiting_reason,
        "downloads": downloads(details),
        "tables": tables(job),
        "errors": details.errors,
        "has_rows": bool(job.ingest_line),
        "row_states": row_states,
        "version": f"{job.ended}.{job.succeeded}.{job.ingest_line}",
        "log": log_lines(details.events),
        "pace": pace_chart(details.minutes),
        "webhook": without_password(job.notify_url) if job.notify_url else None,
        "defaults": {name: cut(as_text(value)) for name, value in job.defaults.items()},
    }
    live = ("heading", "actions", "progress", "row_states", "rows_state", "details")
    return Page("job.html", values, live=live)


def pace_chart(minutes: Sequence[PaceMinute]) -> Chart | None:
    """The rows that ended per second, in each minute of the last day in which the job ran; None for a short job."""
    points = [
        Point(now.at, {"rows": max(0.0, now.numbers["ended"] - then.numbers["ended"]) / (now.at - then.at)})
        for then, now in itertools.pairwise(minutes)
    ]
    if len(points) < 2:
        return None
    seconds = points[-1].at_s - points[0].at_s
    span = Span(seconds, f"{duration(seconds)} before", local_time(points[-1].at_s)[11:16], MINUTE_S)
    series = (Series("rows", "rows, mean of each minute", "be"),)
    return chart("Pace", series, with_gaps(points), per_second, note="Rows that ended per second.", span=span)


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


def tables(job: Job) -> list[Download]:
    """The rows that have ended as tables, in the formats that can hold them."""
    if not job.ended or job.rows_removed_at is not None:
        return []
    return [
        Download(word, f"/jobs/{quote(job.id)}/table/{kind}", file_name(job, kind))
        for kind, word in FORMATS.items()
        if can_write(kind, job)
    ]


def input_name(details: Details) -> str:
    """What its owner calls the input: the name of the table, not of the lines that were made of it."""
    job, file = details.job, details.input_file
    name = (job.source or {}).get("name") or (file.filename if file else job.input_file_id)
    return str(name)


def as_text(value: object) -> str:
    """A default of a job as the page shows it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def cut(message: str) -> str:
    """The first MAX_DEFAULT_CHARS characters of a text."""
    return message[:MAX_DEFAULT_CHARS]


async def change(request: Request) -> Response:
    """Pause, resume, rerun or cancel a job. The response is empty for a script, and a redirect for a plain form."""
    job_id, name = request.path_params["job_id"], request.path_params["change"]
    if name not in get_args(Change):
        raise not_found("change", name, "change")
    await change_job(request, job_id, name)
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"/jobs/{quote(job_id)}", 303)
    return Response(status_code=204)
