"""Queue of results for the Redis stream, each kept until Redis has it."""

from __future__ import annotations

import asyncio
from typing import Any

from engine.wire import protocol
from engine.wire.protocol import ItemResult

# A transaction costs the engine and Redis more than ten results. So results that come within this time after a push go
# together; one that comes later than that goes at once.
PUSH_INTERVAL_S = 0.03


class ResultQueue:
    """Pushes results, in groups and in order, to the stream from which the job system records them.

    The engine's claim on an entry ends in the transaction that pushes its result. No engine takes the entry over after
    that, however long it takes to record the result.
    """

    def __init__(self, redis: Any, items_key: str) -> None:
        self._redis = redis
        self._items_key = items_key.encode()
        self._results: list[tuple[bytes, dict[str, bytes]]] = []
        self._removed: list[bytes] = []
        self._arrived = asyncio.Event()
        self._push_under_way: asyncio.Task[None] | None = None

    def put(self, entry_id: bytes, result: ItemResult) -> None:
        """Queue the result of the entry `entry_id` of the items stream."""
        fields = {"p": protocol.encode(result), "s": self._items_key, "x": entry_id}
        self._results.append((entry_id, fields))
        self._arrived.set()

    def remove(self, entry_id: bytes) -> None:
        """Remove an entry that can have no result from the items stream."""
        self._removed.append(entry_id)
        self._arrived.set()

    def waiting(self) -> set[bytes]:
        """The entries whose results Redis does not have so far. They look as if they were still being computed."""
        return {entry_id for entry_id, _ in self._results}.union(self._removed)

    async def push_forever(self) -> None:
        """Push results as they come. Raises errors of Redis, and then keeps unpushed results for the next call."""
        while True:
            if not self._results and not self._removed:
                self._arrived.clear()
                await self._arrived.wait()
            await self.flush()
            await asyncio.sleep(PUSH_INTERVAL_S)

    async def flush(self) -> None:
        """Push all queued results. After an error some may be pushed twice, which is harmless.

        A push that has been sent goes on when its caller is cancelled, as when the engine drains, and the next call
        waits for it: otherwise that would push the same results again.
        """
        while self._push_under_way is not None and not self._push_under_way.done():
            await asyncio.wait([self._push_under_way])
        self._push_under_way = asyncio.create_task(self._push())
        self._push_under_way.add_done_callback(_retrieve_error)
        await asyncio.shield(self._push_under_way)

    async def _push(self) -> None:
        results, removed = self._results[:], self._removed[:]
        ended = [entry_id for entry_id, _ in results] + removed
        if not ended:
            return
        async with self._redis.pipeline(transaction=True) as pipe:
            for _, fields in results:
                pipe.xadd(protocol.RESULTS_KEY, fields)
            pipe.xack(self._items_key, protocol.ENGINE_GROUP, *ended)
            if removed:
                pipe.xdel(self._items_key, *removed)
            await pipe.execute()
        del self._results[: len(results)]
        del self._removed[: len(removed)]


def _retrieve_error(push: asyncio.Task[None]) -> None:
    """Take the error of a push whose caller was cancelled; asyncio would log it as one that nobody has seen."""
    if not push.cancelled():
        push.exception()
