"""Queries about jobs: create, read, list and lock them, and change their status.

Lock order, everywhere: a job's row first, then its items. Two transactions that want a job and its items then wait
for each other and never deadlock.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, or_, select, text, tuple_, update

from bros_batch.db.job_events import add_change, add_event
from bros_batch.db.states import ENDED_JOB, JobStatus, ensure_job
from bros_batch.db.table_rows import Job
from bros_batch.db.tables import jobs
from bros_batch.db.webhook_calls import add_call

# A literal and not a parameter: a planner that sees a parameter cannot know that the partial index covers it.
HAS_FILE = text("input_file_id <> ''")
DEFAULT_WINDOW_S = 24 * 3600.0

STAMPS = {
    JobStatus.FAILED: "failed_at",
    JobStatus.PAUSED: "paused_at",
    JobStatus.FINALIZING: "finalizing_at",
    JobStatus.COMPLETED: "completed_at",
    JobStatus.EXPIRED: "expired_at",
    JobStatus.CANCELLING: "cancelling_at",
    JobStatus.CANCELLED: "cancelled_at",
}


def new_job_id() -> str:
    return f"batch_{secrets.token_hex(12)}"


def create_job(
    connection: Connection,
    *,
    input_file_id: str,
    endpoint: str,
    model: str,
    name: str | None = None,
    priority: int = 0,
    defaults: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    deadline_at: float | None = None,
    completion_window: str = "24h",
    window_s: float = DEFAULT_WINDOW_S,
    output_expires_after_s: float | None = None,
    fresh: bool = False,
    owner: str = "",
    notify_url: str | None = None,
    notify_key_id: str | None = None,
    announced_rows: int = 0,
    job_id: str | None = None,
    now_s: float | None = None,
) -> Job:
    """Create a job in the status `validating`.

    It expires at its deadline, or after `window_s` if it has none. A job with a higher priority runs first.
    """
    now_s = time.time() if now_s is None else now_s
    job_id = job_id or new_job_id()
    connection.execute(
        insert(jobs).values(
            id=job_id,
            name=name,
            status=JobStatus.VALIDATING.value,
            endpoint=endpoint,
            model=model,
            priority=priority,
            input_file_id=input_file_id,
            defaults=dict(defaults or {}),
            metadata=None if metadata is None else dict(metadata),
            source=None if source is None else dict(source),
            errors=[],
            completion_window=completion_window,
            output_expires_after_s=output_expires_after_s,
            fresh=fresh,
            owner=owner,
            notify_url=notify_url,
            notify_key_id=notify_key_id,
            announced_rows=announced_rows,
            deadline_at=deadline_at,
            created_at=now_s,
            expires_at=now_s + window_s if deadline_at is None else deadline_at,
        )
    )
    job = lock_job(connection, job_id)
    add_event(connection, job, "created", now_s)
    return job


def get_job(connection: Connection, job_id: str, owner: str | None = None) -> Job | None:
    """The job; None if there is none, or if an owner is given and it is another's."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
    job = Job(*row) if row else None
    return None if job is not None and owner is not None and job.owner != owner else job


def list_jobs(
    connection: Connection,
    *,
    after: str | None = None,
    limit: int = 20,
    status: str | Sequence[str] | None = None,
    search: str | None = None,
    owner: str | None = None,
) -> list[Job]:
    """Jobs over files, newest first, starting after the job `after`. `search` is matched against id, name and model.

    With an owner, only that owner's.
    """
    query = select(jobs).where(HAS_FILE).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    if status:
        query = query.where(jobs.c.status.in_([status] if isinstance(status, str) else list(status)))
    if search:
        found = (
            column.icontains(search, autoescape=True) for column in (jobs.c.id, jobs.c.name, jobs.c.model)
        )
        query = query.where(or_(*found))
    if after:
        cursor = select(jobs.c.created_at, jobs.c.id).where(jobs.c.id == after)
        query = query.where(tuple_(jobs.c.created_at, jobs.c.id) < cursor.scalar_subquery())
    return [Job(*row) for row in connection.execute(query)]


def total_counts(connection: Connection) -> dict[str, int]:
    """Items by how they ended, and tokens, summed over the counters of all jobs; cheap, since no item is read."""
    names = ("total", "succeeded", "failed", "cancelled", "expired", "prompt_tokens", "output_tokens")
    row = connection.execute(select(*(func.coalesce(func.sum(jobs.c[name]), 0) for name in names))).one()
    return {name: int(value) for name, value in zip(names, row, strict=True)}


def lock_job(connection: Connection, job_id: str) -> Job:
    """The job, its row locked until the end of the transaction. Raises LookupError."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).first()
    if row is None:
        raise LookupError(f"there is no job {job_id}")
    return Job(*row)


def lock_jobs(connection: Connection, job_ids: Sequence[str]) -> dict[str, Job]:
    """Those of these jobs that exist, locked in the order of their ids."""
    query = select(jobs).where(jobs.c.id.in_(sorted(set(job_ids)))).order_by(jobs.c.id).with_for_update()
    return {row.id: Job(*row) for row in connection.execute(query)}


def set_status(
    connection: Connection, job: Job, target: JobStatus, now_s: float | None = None, **values: Any
) -> Job:
    """Change the status of a locked job, together with other columns. Raises `IllegalTransition`."""
    ensure_job(job.status, target)
    now_s = time.time() if now_s is None else now_s
    stamp = STAMPS.get(target)
    if stamp:
        values[stamp] = now_s
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(status=target.value, **values))
    changed = lock_job(connection, job.id)
    add_change(connection, job, changed, now_s)
    if target in ENDED_JOB:
        add_call(connection, changed, now_s)
    return changed
