"""Heartbeat: tells the job system that the engine is there, what it serves, and how fast it ends items."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import msgspec

from engine.lanes.exchange import Exchange
from engine.lanes.item_rate import ItemRate
from engine.lanes.pulled_item import PulledItem
from engine.wire import redis_keys

INTERVAL_S = 2.0
EXPIRES_S = 15
RATE_INTERVAL_S = 0.25


class Heartbeat:
    """Writes the heartbeat of one engine to Redis, from time to time and when the rate has changed much.

    `about` holds the fields that do not change. `rate` is what it announces, and is told of the time that passes while
    the engine holds items, which `held` returns.
    """

    def __init__(
        self,
        engine_id: str,
        about: dict[str, Any],
        exchange: Exchange,
        redis: Any,
        rate: ItemRate,
        held: Callable[[], Collection[PulledItem]],
    ) -> None:
        self._key = redis_keys.engine_key(engine_id)
        self._about = {
            "engine_id": engine_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": time.time(),
            **about,
        }
        self._exchange = exchange
        self._redis = redis
        self._held = held
        self._rate = rate
        self._rate_is_news = asyncio.Event()

    async def measure_rate(self) -> None:
        """Let the time of the rate pass, until cancelled."""
        while True:
            await asyncio.sleep(RATE_INTERVAL_S)
            is_busy = bool(self._held()) and not self._exchange.watch.is_stuck
            self._rate.advance(time.monotonic(), is_busy=is_busy)
            if self._rate.is_news:
                self._rate_is_news.set()

    async def send_heartbeats(self) -> None:
        """Write heartbeats until cancelled. Raises errors of Redis."""
        watch = self._exchange.watch
        stats: dict[str, Any] = {}
        while True:
            with contextlib.suppress(TimeoutError):  # a main loop that is stuck does not answer
                async with asyncio.timeout(INTERVAL_S):
                    stats = await self._exchange.stats()
            beat = {
                **self._about,
                **self._rate.announce(),
                "late_s": watch.late_s,
                "is_stuck": watch.is_stuck,
                "stats": stats,
                "jobs": in_flight_by_job(self._held()),
            }
            await self._redis.set(self._key, msgspec.msgpack.encode(beat), ex=EXPIRES_S)
            self._rate_is_news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await self._rate_is_news.wait()

    async def end(self) -> None:
        """Remove the heartbeat: the engine takes no more items."""
        await self._redis.delete(self._key)


def in_flight_by_job(items: Iterable[PulledItem]) -> dict[str, tuple[int, int, int]]:
    """By job id, how many of these items it has, how many of them have output, and of how many tokens."""
    found: dict[str, tuple[int, int, int]] = {}
    for pulled in items:
        held, begun, tokens = found.get(pulled.item.job_id, (0, 0, 0))
        found[pulled.item.job_id] = (held + 1, begun + pulled.has_begun, tokens + pulled.num_output_tokens)
    return found
