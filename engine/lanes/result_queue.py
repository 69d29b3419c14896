"""Queue of results for the Redis stream, each kept until Redis has it."""

from __future__ import annotations

import asyncio
from typing import Any

from engine.wire import protocol
from engine.wire.protocol import ItemResult


class ResultQueue:
    """Pushes results, in groups and in order, to the stream from which the job system records them."""

    def __init__(self, redis: Any, items_key: str) -> None:
        self._redis = redis
        self._items_key = items_key.encode()
        self._entries: list[dict[str, bytes]] = []
        self._arrived = asyncio.Event()

    def put(self, entry_id: bytes, result: ItemResult) -> None:
        """Queue the result of the entry `entry_id` of the items stream."""
        self._entries.append({"p": protocol.encode(result), "s": self._items_key, "x": entry_id})
        self._arrived.set()

    async def push_forever(self) -> None:
        """Push results as they come. Raises errors of Redis, and then keeps unpushed results for the next call."""
        while True:
            if not self._entries:
                self._arrived.clear()
                await self._arrived.wait()
            await self.flush()

    async def flush(self) -> None:
        """Push all queued results. After an error some may be pushed twice, which is harmless."""
        entries = self._entries[:]
        if not entries:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for entry in entries:
                pipe.xadd(protocol.RESULTS_KEY, entry)
            await pipe.execute()
        del self._entries[: len(entries)]
