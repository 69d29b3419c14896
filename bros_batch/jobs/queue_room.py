"""How many items a model's stream should hold: a few seconds of work for the engines that serve the model.

More would only make what is queued answer later to a pause or to a more urgent job.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from bros_batch.jobs.streams import heartbeats, stream_counts
from bros_batch.jobs.worker import Worker

# So many items are queued while no engine is running, so that one that starts has something to do at once.
ITEMS_WITHOUT_ENGINE = 256
RECENT_S = 0.25  # as often as an engine looks whether its rate has changed


@dataclass(frozen=True, slots=True)
class QueueRoom:
    """`wanted` items should wait in a stream, and `free` may be added to it now."""

    wanted: int
    free: int

    @property
    def is_low(self) -> bool:
        """Whether less than half of the wanted items wait."""
        return self.free * 2 > self.wanted


class RecentHeartbeats:
    """The heartbeats of the engines that are alive, read again at most a few times per second.

    To find them, Redis looks at the names of all its keys.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._read_at_s = -math.inf
        self._found: Sequence[Mapping[str, Any]] = ()

    def __call__(self) -> Sequence[Mapping[str, Any]]:
        now_s = time.monotonic()
        if now_s - self._read_at_s >= RECENT_S:
            self._read_at_s = now_s
            self._found = heartbeats(self._redis)
        return self._found


def queue_room(
    worker: Worker, model: str, alive: Callable[[], Sequence[Mapping[str, Any]]] | None = None
) -> QueueRoom:
    """How many items the stream of a model wants and lacks. `alive` returns the heartbeats, if not those of now.

    Each engine may find as many items waiting as it holds, since those may all end at the same time, and in addition
    what it ends in `queue_s` seconds. Items whose results wait to be recorded do not wait, but they take up memory in
    Redis too, so they count towards a limit.
    """
    settings = worker.settings
    engines = [
        heartbeat
        for heartbeat in (alive() if alive is not None else heartbeats(worker.redis))
        if heartbeat.get("model") == model and not heartbeat.get("is_stuck")
    ]
    held = sum(int(_number(engine, "max_in_flight")) for engine in engines)
    per_second = sum(_number(engine, "items_per_s") for engine in engines)
    work = held + per_second * settings.queue_s if engines else ITEMS_WITHOUT_ENGINE
    wanted = math.ceil(min(work, settings.queue_max_items))
    counts = stream_counts(worker.redis, model)
    free = min(wanted - counts.waiting, settings.queue_max_items + held - counts.length)
    return QueueRoom(wanted, max(free, 0))


def _number(heartbeat: Mapping[str, Any], name: str) -> float:
    """A number of a heartbeat that is neither negative nor infinite; 0 for anything else."""
    value = heartbeat.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
    return float(value) if is_number and value is not None else 0.0
