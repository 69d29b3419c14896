"""Which items are computing the answers to which content keys just now, in Redis.

This only saves duplicate work. An entry may be out of date, so whoever finds one checks in the database whether the
item is still queued; and if Redis loses all entries, some answers are computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis import Redis

from bros_batch.documents.content_key import KEY_BYTES
from engine.wire.stream_entries import MAX_ITEM_ID, read_number

# Entries of items that were taken back stay behind. Beyond this number (about 10 MB), all are dropped.
MAX_LEADERS = 100_000

# Keys come as one text, because the client library takes longer for each argument than Redis does for all else.
_FIND = """
local found, size = {}, tonumber(ARGV[2])
for n = 1, #ARGV[1], size do
    local key = string.sub(ARGV[1], n, n + size - 1)
    local item = redis.call('HGET', KEYS[1], key)
    if item then
        found[#found + 1] = key
        found[#found + 1] = item
    end
end
return found
"""
_SET = """
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[4]) then redis.call('DEL', KEYS[1]) end
local n, size = 1, tonumber(ARGV[2])
for item in string.gmatch(ARGV[3], '%d+') do
    redis.call('HSET', KEYS[1], string.sub(ARGV[1], n, n + size - 1), item)
    n = n + size
end
"""
_REMOVE = """
local size = tonumber(ARGV[2])
for n = 1, #ARGV[1], size do
    redis.call('HDEL', KEYS[1], string.sub(ARGV[1], n, n + size - 1))
end
"""


def find_leaders(redis: Redis, model: str, keys: Sequence[bytes]) -> dict[bytes, int]:
    """The items that were last said to compute the answers to these keys."""
    if not keys:
        return {}
    answer: Any = redis.eval(_FIND, 1, _name(model), b"".join(keys), KEY_BYTES)
    numbers = [read_number(value, 0, MAX_ITEM_ID) for value in answer[1::2]]
    return {key: number for key, number in zip(answer[::2], numbers, strict=True) if number is not None}


def set_leaders(redis: Redis, model: str, leaders: Mapping[bytes, int]) -> None:
    """Say which items compute the answers to which keys from now on."""
    if leaders:
        items = " ".join(map(str, leaders.values()))
        redis.eval(_SET, 1, _name(model), b"".join(leaders), KEY_BYTES, items, MAX_LEADERS)


def remove_leaders(redis: Redis, model: str, keys: Iterable[bytes]) -> None:
    """Forget who computes the answers to these keys: they are there, or nobody does any more."""
    names = b"".join(key for key in keys if len(key) == KEY_BYTES)  # they come back from the engine
    if names:
        redis.eval(_REMOVE, 1, _name(model), names, KEY_BYTES)


def _name(model: str) -> str:
    return f"bros:leaders:{model}"
