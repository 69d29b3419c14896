"""Snapshots of the engine's counters for everyone who asks: one at a time, and few per second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

# The main loop makes a snapshot between two steps, which takes it about a millisecond.
INTERVAL_S = 0.1

Values = dict[str, Any]


class Snapshots:
    """Takes snapshots for all who wait for one, on the I/O thread.

    One snapshot serves everyone who asked before it was requested. Whoever asks while it is made, or less than
    `INTERVAL_S` after the last one was requested, waits for the next: no answer is older than its question.
    """

    def __init__(self, request: Callable[[bool], None]) -> None:
        """`request(with_memory)` asks the main loop for a snapshot, which it passes to `arrive`."""
        self._request = request
        self._waiting: list[tuple[asyncio.Future[Values], bool]] = []
        self._requested: list[tuple[asyncio.Future[Values], bool]] = []
        self._requested_s = float("-inf")
        self._is_due = False  # a call of `_ask` is scheduled

    async def get(self, *, with_memory: bool) -> Values:
        """Return a new snapshot, with a map of the KV memory under `memory` if asked for."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Values] = loop.create_future()
        self._waiting.append((answer, with_memory))
        self._schedule(loop)
        return await answer

    def arrive(self, values: Values) -> None:
        """Pass the snapshot that was requested to those who wait for it."""
        without_memory = {name: value for name, value in values.items() if name != "memory"}
        for answer, with_memory in self._requested:
            if not answer.done():
                answer.set_result(values if with_memory else without_memory)
        self._requested = []
        if self._waiting:
            self._schedule(asyncio.get_running_loop())

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._requested and not self._is_due:
            self._is_due = True
            loop.call_later(max(0.0, self._requested_s + INTERVAL_S - monotonic()), self._ask)

    def _ask(self) -> None:
        self._is_due = False
        self._requested = [asked for asked in self._waiting if not asked[0].done()]
        self._waiting = []
        if self._requested:
            self._requested_s = monotonic()
            self._request(any(with_memory for _, with_memory in self._requested))
