"""Periodic maintenance: lost items, expiry, abandoned jobs and the retention of files, rows and responses.

The sweep only changes rows; it names the tasks that have to run because of that in its result.
"""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

from redis.exceptions import RedisError

from bros_batch.db import files, idempotency, job_endings, job_leases, lost_items, responses
from bros_batch.db.connections import reading, writing
from bros_batch.db.states import JobStatus
from bros_batch.jobs.generation import ensure_generation
from bros_batch.jobs.row_retention import remove_old_rows
from bros_batch.jobs.streams import queued_entries
from bros_batch.jobs.task_run import TaskRun
from bros_batch.jobs.worker import Worker

log = logging.getLogger("bros.sweep")

PAGE_ROWS = 1_000


def sweep(worker: Worker, now_s: float | None = None) -> TaskRun:
    """Do one round of maintenance. Without Redis, it does what is possible without."""
    now_s = time.time() if now_s is None else now_s
    returned = lost = 0
    finalize: list[str] = []
    try:
        returned = ensure_generation(worker)
        if returned:
            log.warning("Redis came back empty: %d queued items return to pending", returned)
        lost, finalize = _return_lost(worker, now_s)
    except RedisError as error:
        log.warning("Redis can't be reached, so lost items are not looked for now: %s", error)
    ingest, unattended = _move_jobs(worker, now_s)
    finalize += [job_id for job_id in unattended if job_id not in finalize]
    files_removed = _remove_old_files(worker, now_s)
    remove_old_rows(worker, now_s)
    _forget_old_keys(worker, now_s)
    _remove_old_responses(worker, now_s)
    return TaskRun(ingest=ingest, finalize=finalize, returned=returned, lost=lost, files=files_removed)


def _return_lost(worker: Worker, now_s: float) -> tuple[int, list[str]]:
    """Return items to pending that have been queued for long but are in no stream. Returns how many they are, and the
    jobs that finalize because an item failed for good.

    The database is read before the stream. An item whose result is recorded in between is missing from the stream, but
    it is no longer queued when the lost ones are to be returned, so it is not among those.
    """
    lost_after_s = worker.settings.lost_after_s
    in_stream: dict[str, set[tuple[int, int]]] = {}
    num_lost = 0
    finalizing: list[str] = []
    after_id = 0
    while True:
        with reading(worker.database) as connection:
            old = lost_items.items_queued_long(connection, lost_after_s, now_s, after_id, PAGE_ROWS)
        if not old:
            return num_lost, finalizing
        for model in {item.model for item in old} - in_stream.keys():
            entries = queued_entries(worker.redis, model)
            in_stream[model] = {(item_id, epoch) for _, item_id, epoch in entries}
        lost = [item for item in old if (item.id, item.epoch) not in in_stream[item.model]]
        if lost:
            with writing(worker.database) as connection:
                finished = lost_items.return_lost(connection, lost, worker.settings.max_attempts, now_s)
            if finished.changed:
                log.warning("%d queued items were lost", finished.changed)
            num_lost += finished.changed
            finalizing += finished.finalizing
        after_id = old[-1].id


def _move_jobs(worker: Worker, now_s: float) -> tuple[list[str], list[str]]:
    """Move jobs that are over to finalizing. Returns the jobs that no run ingests, and those that none finalizes."""
    with reading(worker.database) as connection:
        moves = job_endings.has_jobs_to_move(connection, now_s)
    if moves:
        with writing(worker.database) as connection:
            job_endings.finish_counted_jobs(connection, now_s)
            job_endings.expire_jobs(connection, now_s)
    with reading(worker.database) as connection:
        lease_s = worker.settings.lease_s
        ingest = job_leases.unattended_jobs(connection, (JobStatus.VALIDATING,), lease_s, now_s)
        ending = (JobStatus.FINALIZING, JobStatus.CANCELLING)
        return ingest, job_leases.unattended_jobs(connection, ending, lease_s, now_s)


def _forget_old_keys(worker: Worker, now_s: float) -> None:
    with reading(worker.database) as connection:
        if not idempotency.has_old_keys(connection, now_s):
            return
    with writing(worker.database) as connection:
        idempotency.delete_old_keys(connection, now_s)


def _remove_old_responses(worker: Worker, now_s: float) -> None:
    with reading(worker.database) as connection:
        removable = responses.removable_responses(connection, now_s)
    if removable:
        with writing(worker.database) as connection:
            responses.delete_responses(connection, removable)


def _remove_old_files(worker: Worker, now_s: float) -> int:
    with reading(worker.database) as connection:
        if not files.expired_files(connection, now_s, limit=1):
            return 0
    with writing(worker.database) as connection:
        expired = files.expired_files(connection, now_s)
        for file in expired:
            files.delete_file(connection, file.id)
    # After the commit: bytes without a row only take space, but a row without bytes is a file that cannot be read.
    for file in expired:
        with contextlib.suppress(FileNotFoundError):
            Path(file.path).unlink()
    return len(expired)
