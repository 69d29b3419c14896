"""Which changes of a job its owner may make now. What is offered and what is accepted follow these rules."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, text

from bros_batch.db.states import JOB_TRANSITIONS, JobStatus
from bros_batch.db.table_rows import Job
from bros_batch.db.tables import IS_WITHOUT_RESULT

Change = Literal["pause", "resume", "rerun", "cancel"]

# The jobs whose rows can be computed again.
RERUNNABLE_JOBS = frozenset(
    {
        JobStatus.IN_PROGRESS,
        JobStatus.PAUSED,
        JobStatus.COMPLETED,
        JobStatus.EXPIRED,
        JobStatus.CANCELLED,
    }
)


def allowed_changes(connection: Connection, job: Job) -> list[Change]:
    """The changes that would be accepted and change something."""
    status = JobStatus(job.status)
    targets = JOB_TRANSITIONS[status]
    allowed: list[Change] = []
    if JobStatus.PAUSED in targets:
        allowed.append("pause")
    if may_resume(status):
        allowed.append("resume")
    if status in RERUNNABLE_JOBS and has_failed_rows(connection, job):
        allowed.append("rerun")
    if JobStatus.CANCELLING in targets:
        allowed.append("cancel")
    return allowed


def may_resume(status: str) -> bool:
    return status == JobStatus.PAUSED


def has_failed_rows(connection: Connection, job: Job) -> bool:
    """Whether a job has rows without a result that can be computed again; those that could not be read cannot."""
    if not job.counts.without_result:
        return False
    query = f"SELECT EXISTS (SELECT 1 FROM items WHERE job_id = :job_id AND body IS NOT NULL AND {IS_WITHOUT_RESULT})"
    return bool(connection.scalar(text(query), {"job_id": job.id}))
