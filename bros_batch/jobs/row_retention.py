"""Removes the rows of ended jobs: by age, and the oldest first while all rows and files take too much room."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

from bros_batch.db import row_retention
from bros_batch.db.connections import reading, writing
from bros_batch.jobs.worker import Worker

log = logging.getLogger("bros.retention")

# One transaction removes so many rows, and one sweep goes on for so long.
AT_ONCE_ROWS = 5_000
BUDGET_S = 5.0
JOBS_PER_SWEEP = 100


def remove_old_rows(worker: Worker, now_s: float) -> int:
    """Remove rows for a few seconds at most; the next sweep continues. Returns of how many jobs the rows are gone."""
    until_s = time.monotonic() + BUDGET_S
    with reading(worker.database) as connection:
        waiting = row_retention.unfinished_removals(connection, now_s)
        old: list[str] = []
        if worker.settings.row_retention_s > 0:
            before_s = now_s - worker.settings.row_retention_s
            old = row_retention.jobs_ended_before(connection, before_s, JOBS_PER_SWEEP)
    for job_id in old:
        with writing(worker.database) as connection:
            if row_retention.begin_removal(connection, job_id, now_s):
                waiting.append(job_id)
    waiting += _remove_for_room(worker, now_s)
    removed = 0
    for job_id in waiting:
        is_done = False
        while not is_done:
            with writing(worker.database) as connection:
                is_done = row_retention.remove_rows(connection, job_id, AT_ONCE_ROWS)
            if not is_done and time.monotonic() >= until_s:
                return removed
        removed += 1
    return removed


def _remove_for_room(worker: Worker, now_s: float) -> list[str]:
    """Begin to remove the oldest jobs while all rows and files have more bytes than they may. Returns their ids."""
    limit = worker.settings.max_stored_bytes
    if not limit:
        return []
    with reading(worker.database) as connection:
        excess = row_retention.stored_bytes(connection) - limit
        oldest = row_retention.oldest_jobs(connection, JOBS_PER_SWEEP) if excess > 0 else []
    begun = []
    for job in oldest:
        if excess <= 0:
            break
        with writing(worker.database) as connection:
            if not row_retention.begin_removal(connection, job.id, now_s):
                continue
            files = row_retention.remove_files(connection, job)
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                Path(file.path).unlink()
        log.warning("the rows and files of %s are removed: there are more than %d bytes", job.id, limit)
        begun.append(job.id)
        excess -= job.size_bytes
    return begun
