"""The generation key, by which an empty or foreign Redis is recognized."""

from __future__ import annotations

import secrets
from typing import Any

from bros_batch.db import lost_items, redis_generation
from bros_batch.db.connections import reading, writing
from bros_batch.jobs.worker import Worker
from engine.wire.redis_keys import GENERATION_KEY


def ensure_generation(worker: Worker) -> int:
    """Make sure that this is the Redis which holds the queued items. If it came back empty or is another one, return
    all of them to pending. Returns how many those were."""
    current: Any = worker.redis.get(GENERATION_KEY)
    with reading(worker.database) as connection:
        if current is not None and current.decode() == redis_generation.get_generation(connection):
            return 0
    with writing(worker.database) as connection:
        seen = redis_generation.get_generation(connection, lock=True)
        current = worker.redis.get(GENERATION_KEY)
        if current is not None and current.decode() == seen:
            return 0  # another worker was faster
        returned = lost_items.return_all_queued(connection)
        generation = secrets.token_hex(12)
        redis_generation.set_generation(connection, generation)
        # Within the transaction, so that a worker that waits for its lock finds both generations equal. A worker that
        # dies before the commit leaves them different, and the next one returns the items.
        worker.redis.set(GENERATION_KEY, generation)
    return returned
