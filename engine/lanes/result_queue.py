"""Queue of results for the Redis stream, each kept until Redis has it."""

from __future__ import annotations

import asyncio
from typing import Any

from engine.wire import item_messages, redis_keys
from engine.wire.item_messages import ItemResult

# A push costs the engine and Redis more than ten results. So results that come within this time after a push go
# together; one that comes later than that goes at once.
PUSH_INTERVAL_S = 0.03
PUSH_RESULTS = 500  # at most, so that others do not wait long for Redis

# One command with all results: the client library would spend more time on a command for each than all else takes.
_PUSH = """
local last = 2 + 2 * ARGV[2]
for n = 3, last, 2 do
    redis.call('XADD', KEYS[1], '*', 'p', ARGV[n], 's', KEYS[2], 'x', ARGV[n + 1])
    redis.call('XACK', KEYS[2], ARGV[1], ARGV[n + 1])
end
for n = last + 1, #ARGV do
    redis.call('XACK', KEYS[2], ARGV[1], ARGV[n])
    redis.call('XDEL', KEYS[2], ARGV[n])
end
"""


class ResultQueue:
    """Pushes results, in groups and in order, to the stream from which the job system records them.

    The engine's claim on an entry ends in the step that pushes its result. No engine takes the entry over after
    that, however long it takes to record the result.
    """

    def __init__(self, redis: Any, items_key: str) -> None:
        self._redis = redis
        self._items_key = items_key
        self._results: list[tuple[bytes, bytes]] = []  # with the entry of each
        self._removed: list[bytes] = []
        self._arrived = asyncio.Event()
        self._push_under_way: asyncio.Task[None] | None = None

    def put(self, entry_id: bytes, result: ItemResult) -> None:
        """Queue the result of the entry `entry_id` of the items stream."""
        self._results.append((item_messages.encode(result), entry_id))
        self._arrived.set()

    def remove(self, entry_id: bytes) -> None:
        """Remove an entry that can have no result from the items stream."""
        self._removed.append(entry_id)
        self._arrived.set()

    def waiting(self) -> set[bytes]:
        """The entries whose results Redis does not have so far. They look as if they were still being computed."""
        return {entry_id for _, entry_id in self._results}.union(self._removed)

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
        while self._results or self._removed:
            results, removed = self._results[:PUSH_RESULTS], self._removed[:PUSH_RESULTS]
            keys = (redis_keys.RESULTS_KEY, self._items_key)
            values = [value for result in results for value in result]
            arguments = (redis_keys.ENGINE_GROUP, len(results), *values, *removed)
            await self._redis.eval(_PUSH, len(keys), *keys, *arguments)
            del self._results[: len(results)]
            del self._removed[: len(removed)]


def _retrieve_error(push: asyncio.Task[None]) -> None:
    """Take the error of a push whose caller was cancelled; asyncio would log it as one that nobody has seen."""
    if not push.cancelled():
        push.exception()
