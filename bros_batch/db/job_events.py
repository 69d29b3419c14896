"""The log of a job: what happened to it, and when. Each event is written in the transaction that it tells of."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, insert, select

from bros_batch.db.states import JobStatus
from bros_batch.db.table_rows import Job, JobEvent
from bros_batch.db.tables import job_events

# A job that is paused and resumed without end keeps its latest events.
MAX_EVENTS = 200


def add_event(connection: Connection, job: Job, kind: str, now_s: float, **more: Any) -> None:
    """Note an event of a job over a file, with the counters that the job has now and whatever else it tells."""
    if not job.has_file:  # that of a background response, of which no page tells
        return
    detail: dict[str, Any] = {
        "total": job.total,
        "succeeded": job.succeeded,
        "without_result": job.counts.without_result,
        **more,
    }
    connection.execute(insert(job_events).values(job_id=job.id, at=now_s, kind=kind, detail=detail))
    own = job_events.c.job_id == job.id
    # From the first one on that is too old, of which there is none as long as there is room.
    oldest = select(job_events.c.id).where(own).order_by(job_events.c.id.desc()).limit(1).offset(MAX_EVENTS)
    too_old = connection.scalar(oldest)
    if too_old is not None:
        connection.execute(delete(job_events).where(own, job_events.c.id <= too_old))


def add_change(connection: Connection, before: Job, after: Job, now_s: float) -> None:
    """Note that the status of a job has changed."""
    kind = after.status
    if after.status == JobStatus.IN_PROGRESS:
        kind = {JobStatus.VALIDATING: "read", JobStatus.PAUSED: "resumed"}.get(
            JobStatus(before.status), "rerun"
        )
    add_event(connection, after, kind, now_s)


def list_events(connection: Connection, job_id: str) -> list[JobEvent]:
    """The events of a job, oldest first."""
    query = select(job_events).where(job_events.c.job_id == job_id).order_by(job_events.c.id)
    return [JobEvent(*row) for row in connection.execute(query)]
