"""Results on their way to Redis: kept until Redis has them."""

from __future__ import annotations

import asyncio
from typing import Any

from engine.wire import protocol
from engine.wire.protocol import WorkResult


class ResultQueue:
    """Pushes results to the stream that the job system records from, in batches, in order."""

    def __init__(self, redis: Any, items_key: str) -> None:
        self._redis = redis
        self._items_key = items_key.encode()
        self._entries: list[dict[str, bytes]] = []
        self._arrived = asyncio.Event()

    def put(self, entry_id: bytes, result: WorkResult) -> None:
        """`entry_id` is the items stream's entry that the result answers."""
        self._entries.append({"p": protocol.encode(result), "s": self._items_key, "x": entry_id})
        self._arrived.set()

    async def push_for_ever(self) -> None:
        """Raises what Redis raises; everything not pushed is kept for the next call."""
        while True:
            if not self._entries:
                self._arrived.clear()
                await self._arrived.wait()
            await self.flush()

    async def flush(self) -> None:
        """Push what there is now. After an error some may be pushed again: a repeated result changes nothing."""
        entries = self._entries[:]
        if not entries:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for entry in entries:
                pipe.xadd(protocol.RESULTS_KEY, entry)
            await pipe.execute()
        del self._entries[: len(entries)]
