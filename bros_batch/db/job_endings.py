"""Queries that end the unfinished items of a job, and that move jobs to finalizing when they are over."""

from __future__ import annotations

import time

from sqlalchemy import Connection, exists, or_, select, text, update

from bros_batch.db.jobs import lock_jobs, set_status
from bros_batch.db.states import ItemStatus, JobStatus, item_sources
from bros_batch.db.tables import jobs

# Error codes and messages of cancelled and expired items in the error file.
END_REASONS = {
    ItemStatus.CANCELLED: ("batch_cancelled", "This line was not run: the batch was cancelled."),
    ItemStatus.EXPIRED: ("batch_expired", "This line was not run before the batch expired."),
}
_RUNNING = (JobStatus.IN_PROGRESS.value, JobStatus.PAUSED.value)
_ALL_ENDED = jobs.c.succeeded + jobs.c.failed + jobs.c.cancelled + jobs.c.expired >= jobs.c.total


def before_unfinished(connection: Connection, job_id: str) -> int | None:
    """A line number up to which all items of a job have ended; None if all of its items have."""
    # One query per status: each status has its own index, and the answer is the first entry of that.
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
    """End the next `limit` unfinished items after a line as cancelled or expired. The job's row must be locked.

    Returns the last line among them, after which the next call continues, or None if no unfinished item was left.
    """
    code, message = END_REASONS[target]
    sources = ", ".join(f"'{source}'" for source in item_sources(target))
    unfinished = f"job_id = :job_id AND line_no > :after_line AND status IN ({sources})"
    values = {"job_id": job_id, "after_line": after_line}
    # By lines and not by ids, so that the next call starts where this one ended and does not pass over its dead rows.
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


def has_jobs_to_move(connection: Connection, now_s: float) -> bool:
    """Whether `expire_jobs` or `finish_counted_jobs` would find any."""
    over = or_(jobs.c.expires_at < now_s, _ALL_ENDED)
    return bool(connection.scalar(select(exists().where(jobs.c.status.in_(_RUNNING), over))))


def expire_jobs(connection: Connection, now_s: float) -> list[str]:
    """Move running jobs past their expiry to finalizing, which ends their unfinished items. Returns their ids."""
    query = select(jobs.c.id).where(jobs.c.status.in_(_RUNNING), jobs.c.expires_at < now_s)
    expired = []
    for job in lock_jobs(connection, connection.scalars(query).all()).values():
        if job.status in _RUNNING and job.expires_at < now_s:
            set_status(connection, job, JobStatus.FINALIZING, now_s)
            expired.append(job.id)
    return expired


def finish_counted_jobs(connection: Connection, now_s: float) -> list[str]:
    """Move running jobs to finalizing if all of their items have ended by the counters. Returns their ids."""
    query = select(jobs.c.id).where(jobs.c.status.in_(_RUNNING), _ALL_ENDED)
    finished = []
    for job in lock_jobs(connection, connection.scalars(query).all()).values():
        if job.status in _RUNNING and job.ended >= job.total:
            set_status(connection, job, JobStatus.FINALIZING, now_s)
            finished.append(job.id)
    return finished
