"""What must happen though nobody asks: lost deliveries, expiry, abandoned tasks, retention.

The sweep only moves rows; the long tasks that follow from it are named in what it answers.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine

from bros_batch.db import engines, files, job_endings, job_leases, lost_items
from bros_batch.db.connections import reading, writing
from bros_batch.db.states import JobStatus
from bros_batch.jobs.streams import ensure_generation, live_deliveries
from bros_batch.settings import Settings

log = logging.getLogger("bros.sweep")

PAGE_ROWS = 1_000
ENGINE_FORGOTTEN_S = 24 * 3600.0


@dataclass(slots=True)
class Swept:
    """What a sweep found, and the jobs whose long tasks must be started."""

    returned: int = 0
    lost: int = 0
    files: int = 0
    ingest: list[str] = field(default_factory=list)
    finalize: list[str] = field(default_factory=list)


def sweep(database: Engine, redis: Redis, settings: Settings, now_s: float | None = None) -> Swept:
    """One round. With Redis away it does what can be done without."""
    now_s = time.time() if now_s is None else now_s
    swept = Swept()
    try:
        swept.returned = ensure_generation(database, redis)
        if swept.returned:
            log.warning("Redis came back empty: %d queued items return to pending", swept.returned)
        _return_lost(database, redis, settings, now_s, swept)
    except RedisError as error:
        log.warning("Redis can't be reached, so nobody looks for lost deliveries now: %s", error)
    _move_jobs(database, now_s, swept)
    _remove_old_files(database, now_s, swept)
    return swept


def _return_lost(database: Engine, redis: Redis, settings: Settings, now_s: float, swept: Swept) -> None:
    """Items queued for long whose delivery is not in Redis. In this order: what is recorded between the two looks
    is missing from Redis, but no longer queued when it is to be returned."""
    live: dict[str, set[tuple[int, int]]] = {}
    after_id = 0
    while True:
        with reading(database) as connection:
            old = lost_items.items_queued_before(
                connection, now_s - settings.lost_after_s, after_id, PAGE_ROWS
            )
        if not old:
            return
        for model in {delivery.model for delivery in old} - live.keys():
            live[model] = {(item_id, epoch) for _, item_id, epoch in live_deliveries(redis, model)}
        lost = [each for each in old if (each.id, each.epoch) not in live[each.model]]
        if lost:
            log.warning("%d deliveries were lost", len(lost))
            with writing(database) as connection:
                finished = lost_items.return_lost(connection, lost, settings.max_attempts, now_s)
            swept.lost += len(lost)
            swept.finalize += finished.finalizing
        after_id = old[-1].id


def _move_jobs(database: Engine, now_s: float, swept: Swept) -> None:
    with reading(database) as connection:
        moves = job_endings.has_jobs_to_move(connection, now_s)
    if moves:
        with writing(database) as connection:
            job_endings.finish_counted_jobs(connection, now_s)
            job_endings.expire_jobs(connection, now_s)
    with reading(database) as connection:
        swept.ingest += job_leases.unattended_jobs(connection, (JobStatus.VALIDATING,), now_s)
        ending = (JobStatus.FINALIZING, JobStatus.CANCELLING)
        unattended = job_leases.unattended_jobs(connection, ending, now_s)
        swept.finalize += [job_id for job_id in unattended if job_id not in swept.finalize]


def _remove_old_files(database: Engine, now_s: float, swept: Swept) -> None:
    with reading(database) as connection:
        if not files.expired_files(connection, now_s, limit=1):
            return
    with writing(database) as connection:
        expired = files.expired_files(connection, now_s)
        for file in expired:
            files.delete_file(connection, file.id)
        engines.delete_silent_engines(connection, now_s - ENGINE_FORGOTTEN_S)
    # After the commit: a file without a row is litter, a row without a file is a broken promise.
    for file in expired:
        with contextlib.suppress(FileNotFoundError):
            Path(file.path).unlink()
    swept.files = len(expired)
