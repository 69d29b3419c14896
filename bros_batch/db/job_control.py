"""Queries by which the owner of a job changes it: cancel, pause and resume."""

from __future__ import annotations

from sqlalchemy import Connection

from bros_batch.db.allowed_changes import may_resume
from bros_batch.db.job_endings import end_items
from bros_batch.db.jobs import lock_job, set_status
from bros_batch.db.states import IllegalTransition, ItemStatus, JobStatus
from bros_batch.db.table_rows import Job

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
