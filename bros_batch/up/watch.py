"""Restarts a child that runs but does not answer: one that is frozen cannot end by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from bros_batch.up.child import Child
from bros_batch.up.probes import Probe

LONGEST_INTERVAL_S = 5.0
PROBE_TIMEOUT_S = 5.0


class Watch:
    """Probes a child, and kills it when it has been silent for `limit_s`; then it is started again.

    A child counts only once it has answered: how long a start takes is unknown. Silence counts only while
    `is_conclusive` returns true, that is, while a healthy child would answer. Each probe counts for at most the time
    until the next one, so that a machine that slept blames nobody.
    """

    def __init__(
        self,
        child: Child,
        probe: Probe,
        limit_s: float,
        announce: Callable[[str], None],
        is_conclusive: Callable[[], bool] = lambda: True,
    ) -> None:
        self._child = child
        self._probe = probe
        self._limit_s = limit_s
        self._announce = announce
        self._is_conclusive = is_conclusive
        self.silent_s = 0.0

    async def run(self) -> None:
        """Watch until cancelled."""
        interval_s = min(LONGEST_INTERVAL_S, self._limit_s / 10)
        timeout_s = min(PROBE_TIMEOUT_S, self._limit_s)
        pid = None
        while True:
            started_s = time.monotonic()
            await asyncio.sleep(interval_s)
            if self._child.pid is None or self._child.pid != pid:
                pid, self.silent_s = self._child.pid, 0.0
            if pid is None:
                continue
            answers = await self._answers(timeout_s)
            if self._child.pid != pid:
                continue
            if answers:
                self._child.has_answered, self.silent_s = True, 0.0
            elif self._child.has_answered and self._is_conclusive():
                self.silent_s += min(time.monotonic() - started_s, interval_s + timeout_s)
            if self.silent_s > self._limit_s:
                self._announce(
                    f"{self._child.spec.name} has been silent for {self.silent_s:.0f} s; killing it"
                )
                self._child.kill()
                pid = None

    async def _answers(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._probe()
        except (OSError, TimeoutError):
            return False


class FileBeat:
    """The probe of a process that touches a file: it is alive if the file was touched since the last probe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen_ns = self._touched_ns()

    async def __call__(self) -> bool:
        before, self._seen_ns = self._seen_ns, self._touched_ns()
        return self._seen_ns != before

    def _touched_ns(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0
