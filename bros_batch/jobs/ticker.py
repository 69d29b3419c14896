"""Celery beat's scheduler on the monotonic clock, which never sends a tick while the last one waits for a worker.

Celery's own scheduler compares the wall clock with times that it has noted. When the clock is set back by an hour, it
sends nothing for an hour, and its file of noted times carries that over a restart. And when ticks come faster than the
workers take them, the queue grows without limit, and everything else waits behind them.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule
from redis.exceptions import RedisError

from bros_batch.heartbeat import touch_heartbeat
from bros_batch.jobs.locks import claim_tick
from bros_batch.jobs.redis_connection import get_redis

log = logging.getLogger("bros.ticker")


class Ticker(Scheduler):
    """Sends each task of `beat_schedule` at once, and then again each time its interval has passed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._due_s: dict[str, float] = {}
        super().__init__(*args, **kwargs)

    def tick(self, *_args: Any, **_kwargs: Any) -> float:
        """Send the tasks that are due. Returns the number of seconds until the next one is."""
        touch_heartbeat("beat")
        for name, entry in self.schedule.items():
            if time.monotonic() >= self._due_s.get(name, 0.0):
                self._send(name, entry)
                assert isinstance(entry.schedule, schedule)  # an interval, as all of ours are
                self._due_s[name] = time.monotonic() + entry.schedule.seconds
        return max(min(self._due_s.values()) - time.monotonic(), 0.0)

    def _send(self, name: str, entry: ScheduleEntry) -> None:
        try:
            may_send = claim_tick(get_redis(), name)
        except RedisError as error:
            log.warning("cannot send %s now: %s", name, error)
            return
        if may_send:
            self.apply_entry(entry, producer=self.producer)
