"""Taking items back from the stream: those of a job that was stopped, and those that keep a more urgent job waiting.

    remove from the stream (atomic)  ->  return to pending in the database, under the same epoch

If a worker dies in between, the items are queued in the database but in no stream, which `pump` notices for a paused
job and the sweep for any other. An engine may have computed an item that was taken back. Its result is recorded as long
as the item has not been claimed again.
"""

from __future__ import annotations

from collections.abc import Sequence

from bros_batch.db import pending_items
from bros_batch.db.connections import writing
from bros_batch.db.jobs import lock_job
from bros_batch.db.states import JobStatus
from bros_batch.jobs.streams import remove_jobs
from bros_batch.jobs.worker import Worker


def withdraw_job(worker: Worker, job_id: str, model: str) -> int:
    """Remove all items of a job from the stream, those that engines are computing included. Engines then drop them.

    If the job is paused, all its items return to pending, and if it has been resumed since, those that were removed do.
    Returns how many were removed.
    """
    removed = remove_jobs(worker.redis, model, [job_id])
    with writing(worker.database) as connection:
        status = lock_job(connection, job_id).status
        if status == JobStatus.PAUSED:
            pending_items.release_job(connection, job_id)
        elif status == JobStatus.IN_PROGRESS:
            pending_items.release_items(connection, removed)
    return len(removed)


def take_back_waiting(worker: Worker, model: str, job_ids: Sequence[str]) -> int:
    """Take back the waiting items of jobs that are less urgent than one with nothing in the stream.

    They are prepared again later, behind that job. Items that engines have read stay with them: an engine takes in more
    urgent ones all the same. Returns how many items were taken back.
    """
    removed = remove_jobs(worker.redis, model, job_ids, only_waiting=True)
    if removed:
        with writing(worker.database) as connection:
            pending_items.release_items(connection, removed)
    return len(removed)
