"""Which changes of a job its owner may make now. What is offered and what is accepted follow these rules."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, text

from bros_batch.db.states import ENDED_JOB, JOB_TRANSITIONS, JobStatus
from bros_batch.db.tables import Job

Change = Literal["pause", "resume", "retry", "cancel"]

# The items that a retry runs again: those without a result that could be read.
RETRIABLE_ITEMS = "job_id = :job_id AND body IS NOT NULL AND status IN ('failed', 'cancelled', 'expired')"


def allowed_changes(connection: Connection, job: Job) -> list[Change]:
    """The changes that would be accepted and change something."""
    status = JobStatus(job.status)
    targets = JOB_TRANSITIONS[status]
    allowed: list[Change] = []
    if JobStatus.PAUSED in targets:
        allowed.append("pause")
    if may_resume(status):
        allowed.append("resume")
    if may_retry(status) and has_retriable_items(connection, job):
        allowed.append("retry")
    if JobStatus.CANCELLING in targets:
        allowed.append("cancel")
    return allowed


def may_resume(status: str) -> bool:
    return status == JobStatus.PAUSED


def may_retry(status: str) -> bool:
    """Whether the status allows a retry; it also needs an item that can run again."""
    return status in ENDED_JOB and JobStatus.IN_PROGRESS in JOB_TRANSITIONS[JobStatus(status)]


def has_retriable_items(connection: Connection, job: Job) -> bool:
    if not job.counts.without_result:
        return False
    query = f"SELECT EXISTS (SELECT 1 FROM items WHERE {RETRIABLE_ITEMS})"
    return bool(connection.scalar(text(query), {"job_id": job.id}))
