"""Queries that move a whole job: create, cancel, pause, resume, retry, and what ends one.

Lock order, everywhere: the job's row first, then its items. Two transactions that both want a job and its items
then wait for each other and never form a circle.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, exists, insert, or_, select, text, update

from bros_batch.db.states import (
    WITHOUT_RESULT,
    IllegalTransition,
    ItemStatus,
    JobStatus,
    ensure_item,
    ensure_job,
    item_sources,
)
from bros_batch.db.tables import Job, jobs, new_job_id

DEFAULT_WINDOW_S = 24 * 3600.0
CANCEL_AT_ONCE_ITEMS = 10_000

# What cancelled and expired lines say in the error file.
END_REASONS = {
    ItemStatus.CANCELLED: ("batch_cancelled", "This line was not run: the batch was cancelled."),
    ItemStatus.EXPIRED: ("batch_expired", "This line was not run before the batch expired."),
}
STAMPS = {
    JobStatus.FAILED: "failed_at",
    JobStatus.PAUSED: "paused_at",
    JobStatus.FINALIZING: "finalizing_at",
    JobStatus.COMPLETED: "completed_at",
    JobStatus.EXPIRED: "expired_at",
    JobStatus.CANCELLING: "cancelling_at",
    JobStatus.CANCELLED: "cancelled_at",
}


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
    deadline_at: float | None = None,
    completion_window: str = "24h",
    window_s: float = DEFAULT_WINDOW_S,
    job_id: str | None = None,
    now_s: float | None = None,
) -> Job:
    """A job in `validating`. It expires at its deadline, or `window_s` after now. A higher priority goes first."""
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
            errors=[],
            completion_window=completion_window,
            deadline_at=deadline_at,
            created_at=now_s,
            expires_at=now_s + window_s if deadline_at is None else deadline_at,
        )
    )
    return lock_job(connection, job_id)


def lock_job(connection: Connection, job_id: str) -> Job:
    """The job, its row locked to the end of the transaction. Raises LookupError."""
    query = select(jobs).where(jobs.c.id == job_id).with_for_update()
    row = connection.execute(query).mappings().first()
    if row is None:
        raise LookupError(f"there is no job {job_id}")
    return Job.of(row)


def lock_jobs(connection: Connection, job_ids: Sequence[str]) -> dict[str, Job]:
    """The jobs of these ids that exist, locked in one order."""
    query = select(jobs).where(jobs.c.id.in_(sorted(set(job_ids)))).order_by(jobs.c.id).with_for_update()
    return {row["id"]: Job.of(row) for row in connection.execute(query).mappings()}


def set_status(
    connection: Connection, job: Job, target: JobStatus, now_s: float | None = None, **values: Any
) -> Job:
    """Move a locked job. Raises `IllegalTransition`."""
    ensure_job(job.status, target)
    stamp = STAMPS.get(target)
    if stamp:
        values[stamp] = time.time() if now_s is None else now_s
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(status=target.value, **values))
    return lock_job(connection, job.id)


def cancel_job(connection: Connection, job_id: str, now_s: float | None = None) -> Job:
    """Stop a job. Its unfinished lines end as `cancelled` here, or, past the first 10,000, in `finalize`, which
    the caller dispatches; finished lines stay. A job that is cancelling or cancelled already is left as it is."""
    job = lock_job(connection, job_id)
    if job.status in (JobStatus.CANCELLING, JobStatus.CANCELLED):
        return job
    job = set_status(connection, job, JobStatus.CANCELLING, now_s)
    end_items(connection, job_id, ItemStatus.CANCELLED, limit=CANCEL_AT_ONCE_ITEMS, now_s=now_s)
    return lock_job(connection, job_id)


def pause_job(connection: Connection, job_id: str, now_s: float | None = None) -> Job:
    """Prepare nothing more of a job; what is queued still finishes."""
    job = lock_job(connection, job_id)
    return job if job.status == JobStatus.PAUSED else set_status(connection, job, JobStatus.PAUSED, now_s)


def resume_job(connection: Connection, job_id: str, now_s: float | None = None) -> Job:
    """Go on with a paused job."""
    job = lock_job(connection, job_id)
    if job.status == JobStatus.IN_PROGRESS:
        return job
    if job.status != JobStatus.PAUSED:
        raise IllegalTransition("the job", job.status, JobStatus.IN_PROGRESS)
    return set_status(connection, job, JobStatus.IN_PROGRESS, now_s, paused_at=None)


def retry_job(
    connection: Connection, job_id: str, *, window_s: float = DEFAULT_WINDOW_S, now_s: float | None = None
) -> Job:
    """Run an ended job's lines that have no result again: failed, expired and cancelled ones. Lines that could
    not be read have nothing to run and stay failed. The old output files are superseded by the next ones.
    Raises `IllegalTransition` where the job has not ended or nothing can be run again."""
    now_s = time.time() if now_s is None else now_s
    job = lock_job(connection, job_id)
    ensure_job(job.status, JobStatus.IN_PROGRESS)
    if job.status in (JobStatus.PAUSED, JobStatus.VALIDATING):
        raise IllegalTransition("the job", job.status, JobStatus.IN_PROGRESS)
    for source in WITHOUT_RESULT:
        ensure_item(source, ItemStatus.PENDING)
    rows = connection.execute(
        text(
            "UPDATE items SET status = 'pending', attempts = 0, error_code = NULL, error_message = NULL, "
            "finished_at = NULL, queued_at = NULL WHERE job_id = :job_id AND body IS NOT NULL "
            "AND status IN ('failed', 'cancelled', 'expired')"
        ),
        {"job_id": job_id},
    ).rowcount
    if not rows:
        raise IllegalTransition("nothing of the job can be run again; it", job.status, JobStatus.IN_PROGRESS)
    # What stays are the unreadable lines, all of them failed.
    unreadable = job.failed + job.cancelled + job.expired - rows
    deadline_at = job.deadline_at if job.deadline_at is not None and job.deadline_at > now_s else None
    return set_status(
        connection,
        job,
        JobStatus.IN_PROGRESS,
        now_s,
        failed=unreadable,
        cancelled=0,
        expired=0,
        deadline_at=deadline_at,
        expires_at=now_s + window_s if deadline_at is None else deadline_at,
        written_line=0,
        written_output_bytes=0,
        written_error_bytes=0,
        lease_token=None,
        lease_until=0.0,
        **dict.fromkeys(
            (
                "output_file_id",
                "error_file_id",
                "finalizing_at",
                "completed_at",
                "expired_at",
                "cancelling_at",
                "cancelled_at",
            )
        ),
    )


def before_unfinished(connection: Connection, job_id: str) -> int | None:
    """A line before which all of a job's lines have ended; None when all of them have."""
    # One question for each status: each has its own index, whose first entry is the answer.
    query = "SELECT min(line_no) FROM items WHERE job_id = :job_id AND status = '{}'"
    lines = [
        connection.scalar(text(query.format(status)), {"job_id": job_id})
        for status in item_sources(ItemStatus.CANCELLED)
    ]
    return min((line - 1 for line in lines if line is not None), default=None)


def end_items(
    connection: Connection,
    job_id: str,
    target: ItemStatus,
    *,
    limit: int,
    after_line: int = 0,
    now_s: float | None = None,
) -> int | None:
    """End the next `limit` unfinished items after a line of a job whose row is locked, as cancelled or expired.
    Answers the last line among them, to go on after, or None when there was none left."""
    code, message = END_REASONS[target]
    sources = ", ".join(f"'{source}'" for source in item_sources(target))
    unfinished = f"job_id = :job_id AND line_no > :after_line AND status IN ({sources})"
    values = {"job_id": job_id, "after_line": after_line}
    # By lines, not by ids: the next call then starts where this one ended, and not with what this one left behind.
    last_line = connection.scalar(
        text(
            f"SELECT max(line_no) FROM (SELECT line_no FROM items WHERE {unfinished} "
            "ORDER BY line_no LIMIT :limit) AS part"
        ),
        {**values, "limit": limit},
    )
    if last_line is None:
        return None
    count = connection.execute(
        text(
            "UPDATE items SET status = :target, error_code = :code, error_message = :message, finished_at = :now "
            f"WHERE {unfinished} AND line_no <= :last_line"
        ),
        {
            **values,
            "last_line": last_line,
            "target": target.value,
            "code": code,
            "message": message,
            "now": time.time() if now_s is None else now_s,
        },
    ).rowcount
    if count:
        column = jobs.c[target.value]
        connection.execute(update(jobs).where(jobs.c.id == job_id).values({column: column + count}))
    return int(last_line)


_RUNNING = (JobStatus.IN_PROGRESS.value, JobStatus.PAUSED.value)
_ALL_ENDED = jobs.c.succeeded + jobs.c.failed + jobs.c.cancelled + jobs.c.expired >= jobs.c.total


def has_jobs_to_move(connection: Connection, now_s: float) -> bool:
    """Whether `expire_jobs` or `finish_counted_jobs` would find any."""
    due = or_(jobs.c.expires_at < now_s, _ALL_ENDED)
    return bool(connection.scalar(select(exists().where(jobs.c.status.in_(_RUNNING), due))))


def expire_jobs(connection: Connection, now_s: float) -> list[str]:
    """Move running jobs past their time to finalizing, which ends their unfinished lines; answers their ids."""
    query = select(jobs.c.id).where(jobs.c.status.in_(_RUNNING), jobs.c.expires_at < now_s)
    expired = []
    for job in lock_jobs(connection, connection.scalars(query).all()).values():
        if job.status in _RUNNING and job.expires_at < now_s:
            set_status(connection, job, JobStatus.FINALIZING, now_s)
            expired.append(job.id)
    return expired


def finish_counted_jobs(connection: Connection, now_s: float) -> list[str]:
    """Move running jobs whose counters say that every line has ended to finalizing; answers their ids."""
    query = select(jobs.c.id).where(jobs.c.status.in_(_RUNNING), _ALL_ENDED)
    finished = []
    for job in lock_jobs(connection, connection.scalars(query).all()).values():
        if job.status in _RUNNING and job.ended >= job.total:
            set_status(connection, job, JobStatus.FINALIZING, now_s)
            finished.append(job.id)
    return finished
