"""Celery beat's scheduler on the monotonic clock.

Celery's own scheduler compares the wall clock with times that it has noted. When the clock is set back by an hour, it
sends nothing for an hour, and its file of noted times carries that over a restart.
"""

from __future__ import annotations

import time
from typing import Any

from celery.beat import Scheduler
from celery.schedules import schedule

from bros_batch.heartbeat import touch_heartbeat


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
                self.apply_entry(entry, producer=self.producer)
                assert isinstance(entry.schedule, schedule)  # an interval, as all of ours are
                self._due_s[name] = time.monotonic() + entry.schedule.seconds
        return max(min(self._due_s.values()) - time.monotonic(), 0.0)
