"""What an engine holds of a stream of items: it reads and claims entries, and asks which are still its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from engine.wire import redis_keys
from engine.wire.limits import MAX_PRIORITY
from engine.wire.stream_entries import read_number

Fields = dict[bytes, bytes]
Entry = tuple[bytes, Fields]

ALL_ENTRIES = 1 << 20  # of one engine, which never holds that many
LONG_IDLE_MS = 10**9  # longer than any engine's claim timeout, so that any engine may take the entry

# One trip to Redis for all entries. It answers with those that are no longer this consumer's.
_CHECK = """
local own, gone = {}, {}
for _, about in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[4], ARGV[2])) do
    own[about[1]] = true
end
for n = 5, #ARGV do
    local id = ARGV[n]
    if not own[id] then
        gone[#gone + 1] = id
    elseif ARGV[3] == '1' then
        redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'JUSTID')
    end
end
return gone
"""

# The priorities of the next entries that no engine has read. Their payloads stay in Redis.
_NEXT_PRIORITIES = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local last = nil
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local about = {}
    for n = 1, #group, 2 do about[group[n]] = group[n + 1] end
    if about['name'] == ARGV[1] then last = about['last-delivered-id'] end
end
local found = {}
if not last then return found end
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', ARGV[2])) do
    local fields, priority = entry[2], ''
    for n = 1, #fields, 2 do
        if fields[n] == 'r' then priority = fields[n + 1] end
    end
    found[#found + 1] = priority
end
return found
"""


class StreamClaims:
    """The claims of one engine on entries of one stream.

    An entry is the engine's from the time it reads it until it has pushed the result. The job system takes an entry
    away by removing it from the stream; another engine does so by claiming it.
    """

    def __init__(self, redis: Any, key: str, engine_id: str) -> None:
        self._redis = redis
        self._key = key
        self._engine_id = engine_id

    async def make_group(self) -> None:
        """Make the group whose members share the stream, unless there is one."""
        try:
            await self._redis.xgroup_create(self._key, redis_keys.ENGINE_GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):  # BUSYGROUP: the group exists already
                raise

    async def read(self, count: int, block_ms: int) -> list[Entry]:
        """The next `count` entries that no engine has read, from now on the engine's. Waits if there are none."""
        answer = await self._redis.xreadgroup(
            redis_keys.ENGINE_GROUP, self._engine_id, {self._key: ">"}, count=count, block=block_ms
        )
        return _entries(answer)

    async def own(self) -> dict[bytes, int]:
        """The engine's entries, and how often each was started."""
        return await self._pending(ALL_ENTRIES, consumername=self._engine_id)

    async def left_by_others(self, limit: int, min_idle_ms: int) -> dict[bytes, int]:
        """Up to `limit` entries that no engine has claimed for so long, and how often each was started."""
        return await self._pending(limit, idle=min_idle_ms)

    async def _pending(self, limit: int, **options: Any) -> dict[bytes, int]:
        pending = await self._redis.xpending_range(
            self._key, redis_keys.ENGINE_GROUP, min="-", max="+", count=limit, **options
        )
        return {each["message_id"]: each["times_delivered"] for each in pending}

    async def claim(self, starts: Mapping[bytes, int], min_idle_ms: int) -> list[Entry]:
        """Claim these entries, started so many times now, unless another engine has claimed them meanwhile."""
        claimed: list[Entry] = []
        for count, entry_ids in _by_count(starts).items():
            claimed += await self._claim(self._engine_id, min_idle_ms, entry_ids, retrycount=count)
        return [entry for entry in claimed if entry[1] is not None]  # None: it was deleted

    async def set_starts(self, starts: Mapping[bytes, int]) -> None:
        """Note how often entries of the engine were started."""
        for count, entry_ids in _by_count(starts).items():
            await self._claim(self._engine_id, 0, entry_ids, retrycount=count, justid=True)

    async def release(self, entry_ids: Sequence[bytes]) -> None:
        """Leave entries to whichever engine claims them next, as if they had never been started."""
        await self._claim("released", 0, entry_ids, idle=LONG_IDLE_MS, retrycount=0, justid=True)

    async def _claim(
        self, consumer: str, min_idle_ms: int, entry_ids: Sequence[bytes], **options: Any
    ) -> Any:
        return await self._redis.xclaim(
            self._key, redis_keys.ENGINE_GROUP, consumer, min_idle_ms, entry_ids, **options
        )

    async def lost(self, entry_ids: Sequence[bytes], *, renew: bool) -> list[bytes]:
        """Those of these entries that are no longer the engine's. `renew`: renew the claims on the others."""
        if not entry_ids:
            return []
        arguments = (redis_keys.ENGINE_GROUP, self._engine_id, int(renew), ALL_ENTRIES, *entry_ids)
        gone: list[bytes] = await self._redis.eval(_CHECK, 1, self._key, *arguments)
        return gone

    async def more_urgent(self, priority: int, limit: int) -> int:
        """How many of the next `limit` unread entries, from the first on, have a higher priority than this one."""
        found = await self._redis.eval(_NEXT_PRIORITIES, 1, self._key, redis_keys.ENGINE_GROUP, limit)
        count = 0
        for value in found:
            waiting = read_number(value, -MAX_PRIORITY, MAX_PRIORITY)
            if waiting is None or waiting <= priority:
                break
            count += 1
        return count


def _by_count(counts: Mapping[bytes, int]) -> dict[int, list[bytes]]:
    """Entries by their counts, of which those below 0 are 0."""
    groups: dict[int, list[bytes]] = {}
    for entry_id, count in counts.items():
        groups.setdefault(max(0, count), []).append(entry_id)
    return groups


def _entries(answer: Any) -> list[Entry]:
    """The entries of an XREADGROUP reply about one stream, in either of the two shapes of the protocol."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [entry for batch in answer.values() for entries in batch for entry in entries]
    return [entry for _, entries in answer for entry in entries]
