"""Queries by which the owner of a job changes it: cancel, pause, resume and retry."""

from __future__ import annotations

import time

from sqlalchemy import Connection, text

from bros_batch.db.allowed_changes import RETRIABLE_ITEMS, may_resume, may_retry
from bros_batch.db.job_endings import end_items
from bros_batch.db.job_leases import NO_LEASE
from bros_batch.db.jobs import DEFAULT_WINDOW_S, lock_job, set_status
from bros_batch.db.states import (
    WITHOUT_RESULT,
    IllegalTransition,
    ItemStatus,
    JobStatus,
    ensure_item,
    ensure_job,
)
from bros_batch.db.tables import Job

CANCEL_AT_ONCE_ITEMS = 10_000


def cancel_job(connection: Connection, job_id: str, now_s: float | None = None) -> Job:
    """Stop a job.

    Its unfinished items end as `cancelled`: the first 10,000 here, the others in `finalize`, which the caller
    dispatches. Finished items stay as they are, and so does a job that is already cancelling or cancelled.
    """
    job = lock_job(connection, job_id)
    if job.status in (JobStatus.CANCELLING, JobStatus.CANCELLED):
        return job
    job = set_status(connection, job, JobStatus.CANCELLING, now_s)
    end_items(connection, job_id, ItemStatus.CANCELLED, limit=CANCEL_AT_ONCE_ITEMS, now_s=now_s)
    return lock_job(connection, job_id)


def pause_job(connection: Connection, job_id: str, now_s: float | None = None) -> Job:
    """Stop a job until it is resumed. The caller then takes its items back from the stream."""
    job = lock_job(connection, job_id)
    return job if job.status == JobStatus.PAUSED else set_status(connection, job, JobStatus.PAUSED, now_s)


def resume_job(connection: Connection, job_id: str, now_s: float | None = None) -> Job:
    """Continue a paused job."""
    job = lock_job(connection, job_id)
    if job.status == JobStatus.IN_PROGRESS:
        return job
    if not may_resume(job.status):
        raise IllegalTransition("the job", job.status, JobStatus.IN_PROGRESS)
    return set_status(connection, job, JobStatus.IN_PROGRESS, now_s, paused_at=None)


def retry_job(
    connection: Connection, job_id: str, *, window_s: float = DEFAULT_WINDOW_S, now_s: float | None = None
) -> Job:
    """Run the items of an ended job that have no result again: failed, expired and cancelled ones.

    Lines that could not be read have nothing to run and stay failed. The next output files replace the present ones.
    Raises `IllegalTransition` if the job has not ended or no item can run again.
    """
    now_s = time.time() if now_s is None else now_s
    job = lock_job(connection, job_id)
    ensure_job(job.status, JobStatus.IN_PROGRESS)
    if not may_retry(job.status):
        raise IllegalTransition("the job", job.status, JobStatus.IN_PROGRESS)
    for source in WITHOUT_RESULT:
        ensure_item(source, ItemStatus.PENDING)
    rows = connection.execute(
        text(
            # The next epoch: a result from before the retry changes nothing.
            "UPDATE items SET status = 'pending', epoch = epoch + 1, attempts = 0, error_code = NULL, "
            f"error_message = NULL, result = NULL, finished_at = NULL, queued_at = NULL WHERE {RETRIABLE_ITEMS}"
        ),
        {"job_id": job_id},
    ).rowcount
    if not rows:
        raise IllegalTransition("nothing of the job can be run again; it", job.status, JobStatus.IN_PROGRESS)
    # Only the unreadable lines are left without a result, and all of them have failed.
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
        in_progress_at=now_s,
        written_line=0,
        written_output_bytes=0,
        written_error_bytes=0,
        **NO_LEASE,
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
