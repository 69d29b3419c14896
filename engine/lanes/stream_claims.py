"""What an engine holds of a stream of items: which entries are still its own, and whether urgent ones wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.wire import protocol
from engine.wire.limits import MAX_PRIORITY
from engine.wire.stream_entries import read_number

ALL_ENTRIES = 1 << 20  # of one engine, which never holds that many

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

    async def lost(self, entry_ids: Sequence[bytes], *, renew: bool) -> list[bytes]:
        """Those of these entries that are no longer the engine's. `renew`: renew the claims on the others."""
        if not entry_ids:
            return []
        arguments = (protocol.ENGINE_GROUP, self._engine_id, int(renew), ALL_ENTRIES, *entry_ids)
        gone: list[bytes] = await self._redis.eval(_CHECK, 1, self._key, *arguments)
        return gone

    async def more_urgent(self, priority: int, limit: int) -> int:
        """How many of the next `limit` unread entries, from the first on, have a higher priority than this one."""
        found = await self._redis.eval(_NEXT_PRIORITIES, 1, self._key, protocol.ENGINE_GROUP, limit)
        count = 0
        for value in found:
            waiting = read_number(value, -MAX_PRIORITY, MAX_PRIORITY)
            if waiting is None or waiting <= priority:
                break
            count += 1
        return count
