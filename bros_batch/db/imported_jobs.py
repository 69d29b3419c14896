"""Queries that store a job which was on another server: the job itself, its rows as they were, and its status."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, update

from bros_batch.db.job_events import add_event
from bros_batch.db.job_leases import NO_LEASE
from bros_batch.db.jobs import DEFAULT_WINDOW_S, lock_job, new_job_id, set_status
from bros_batch.db.states import JobStatus, ensure_job
from bros_batch.db.table_rows import Job
from bros_batch.db.tables import items, job_events, jobs
from bros_batch.documents.job_file import JOB_FILE, ExportedJob, JobHead, RowCounts, StoredRow

_ENDINGS = {
    "completed": JobStatus.FINALIZING,
    "expired": JobStatus.FINALIZING,
    "finalizing": JobStatus.FINALIZING,
    "cancelled": JobStatus.CANCELLING,
    "cancelling": JobStatus.CANCELLING,
}
_KEPT = (
    "name", "endpoint", "model", "priority", "defaults", "metadata", "source", "fresh", "completion_window",
    "output_expires_after_s", "deadline_at", "created_at", "expires_at",
)  # fmt: skip


def create_imported_job(
    connection: Connection,
    exported: ExportedJob,
    model: str,
    input_file_id: str,
    now_s: float,
    owner: str = "",
    announced_rows: int = 0,
) -> Job:
    """Create a job whose rows are then read from an exported file. Its events come with the rows."""
    values: dict[str, Any] = {name: getattr(exported, name) for name in _KEPT}
    values |= {
        "model": model,
        "errors": [],
        "ingest_form": JOB_FILE,
        "input_file_id": input_file_id,
        "owner": owner,
        "announced_rows": announced_rows,
    }
    job_id = new_job_id()
    connection.execute(insert(jobs).values(id=job_id, status=JobStatus.VALIDATING.value, **values))
    return lock_job(connection, job_id)


def insert_rows(connection: Connection, job_id: str, rows: Sequence[StoredRow]) -> None:
    """Insert rows as they were; those that were queued are pending, since no stream here has them."""
    values = []
    for row in rows:
        value = msgspec.structs.asdict(row)
        value["line_no"] = value.pop("row")
        if row.status == "queued":
            value |= {"status": "pending", "queued_at": None}
        values.append({"job_id": job_id, **value})
    if values:
        connection.execute(insert(items), values)


def counts_of(job: Job) -> RowCounts:
    """The counts of the rows that have been read so far."""
    return RowCounts(
        job.ingest_line, job.total, job.succeeded, job.failed, job.cancelled, job.expired, job.prompt_tokens,
        job.output_tokens,
    )  # fmt: skip


def count_columns(counts: RowCounts) -> dict[str, int]:
    """The same counts as columns of the job."""
    values = asdict(counts)
    values["ingest_line"] = values.pop("last_row")
    return values


def finish_import(connection: Connection, job: Job, head: JobHead, form: str) -> Job:
    """Give a job whose rows are complete the status, the times and the log that it had.

    A job that had ended is moved to where finalize ends it again, at the time at which it had ended. One with
    unfinished rows runs here; if its time was up on the way, it gets as long as a new job.
    """
    exported, now_s = head.job, time.time()
    target = _target(exported, job)
    values: dict[str, Any] = {
        "ingest_form": form,
        "cached_tokens": min(exported.cached_tokens, job.prompt_tokens),
        "reused": min(exported.reused, job.total),
        "reused_prompt_tokens": exported.reused_prompt_tokens,
        "reused_output_tokens": exported.reused_output_tokens,
        "errors": [msgspec.structs.asdict(error) for error in exported.errors],
        **NO_LEASE,
    }
    if target is JobStatus.FAILED:
        _add_log(connection, job.id, head, ("failed",))
        return set_status(connection, job, target, exported.failed_at, **values)
    _add_log(connection, job.id, head, ("finalizing", "completed", "expired", "cancelling", "cancelled"))
    ensure_job(job.status, JobStatus.IN_PROGRESS)
    values["in_progress_at"] = exported.in_progress_at
    is_running = target in (JobStatus.IN_PROGRESS, JobStatus.PAUSED)
    if is_running and exported.expires_at < now_s:
        values |= {"deadline_at": None, "expires_at": now_s + DEFAULT_WINDOW_S}
    if not is_running:
        values |= {"completed_at": exported.completed_at, "expired_at": exported.expired_at}
        values |= {"cancelled_at": exported.cancelled_at, "paused_at": exported.paused_at}
    connection.execute(
        update(jobs).where(jobs.c.id == job.id).values(status=JobStatus.IN_PROGRESS.value, **values)
    )
    job = lock_job(connection, job.id)
    if is_running:
        add_event(connection, job, "imported", now_s)
    if target is JobStatus.IN_PROGRESS:
        return job
    at = {
        JobStatus.PAUSED: exported.paused_at,
        JobStatus.FINALIZING: exported.finalizing_at,
        JobStatus.CANCELLING: exported.cancelling_at,
    }[target]
    return set_status(connection, job, target, at)


def reject_import(connection: Connection, job: Job, message: str) -> None:
    """End an import that cannot be completed. The rows that it has stored are removed like those of old jobs."""
    error = {"code": "invalid_job_file", "line": None, "message": message, "param": "input_file_id"}
    now_s = time.time()
    nothing = {**count_columns(RowCounts()), "ingest_form": None, "rows_removed_at": now_s}
    set_status(connection, job, JobStatus.FAILED, now_s, errors=[error], **nothing, **NO_LEASE)


def _target(exported: ExportedJob, job: Job) -> JobStatus:
    """Where an imported job continues. A job whose rows were started again while it was exported is running."""
    if exported.status == "failed":
        return JobStatus.FAILED
    if exported.status in ("completed", "expired", "cancelled") and job.ended < job.total:
        return JobStatus.IN_PROGRESS
    return _ENDINGS.get(exported.status) or JobStatus(exported.status)


def _add_log(connection: Connection, job_id: str, head: JobHead, endings: Sequence[str]) -> None:
    """Add the events of the job, except those of its last end, which are written again when it ends here."""
    events = list(head.events)
    while events and events[-1].kind in endings:
        events.pop()
    rows = [
        {
            "job_id": job_id,
            "at": event.at,
            "kind": event.kind,
            "detail": {name: getattr(event, name) for name in ("total", "succeeded", "without_result")},
        }
        for event in events
    ]
    if rows:
        connection.execute(insert(job_events), rows)
