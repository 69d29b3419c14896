"""Words and times that describe a job to readers."""

from __future__ import annotations

from bros_batch.db.in_flight import InFlight
from bros_batch.db.states import ENDED_JOB, ItemStatus, JobStatus
from bros_batch.db.table_rows import Job
from bros_batch.web.formats import counted

STATUS_WORDS: dict[str, str] = {
    JobStatus.VALIDATING: "reading",
    JobStatus.IN_PROGRESS: "running",
    JobStatus.FINALIZING: "writing files",
    ItemStatus.PENDING: "waiting",
    ItemStatus.SUCCEEDED: "done",
}


def status_word(status: str) -> str:
    """The word for the status of a job or a row."""
    return STATUS_WORDS.get(status, status)


def took_s(job: Job) -> float | None:
    """The time from the submission of an ended job to its end."""
    ended_at = job.completed_at or job.cancelled_at or job.expired_at or job.failed_at
    return ended_at - job.created_at if ended_at is not None and job.status in ENDED_JOB else None


def being_computed(held: InFlight) -> str:
    """The rows that engines compute: those with output and how much there is of it, or else those that were taken."""
    if not held.begun:
        return counted(held.items, "row")
    return f"{counted(held.begun, 'row')} · {counted(held.output_tokens, 'token')} so far"
