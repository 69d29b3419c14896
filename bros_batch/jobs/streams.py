"""What Redis holds of the jobs: queued items, results on their way back, and the heartbeats of engines.

All of it may be gone at any moment; the database knows what has to be done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import ResponseError

from engine.wire.decoding import DECODE_ERRORS
from engine.wire.redis_keys import ENGINE_GROUP, RECORD_GROUP, RESULTS_KEY, engine_key, items_key
from engine.wire.stream_entries import MAX_EPOCH, MAX_ITEM_ID, read_number

LIST_PAGE = 1_000

# Only the names of the entries leave Redis and not their payloads, which are the tokens of thousands of items.
_LIST = """
local names = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])) do
    local fields, item, epoch = entry[2], '0', '0'
    for n = 1, #fields, 2 do
        if fields[n] == 'i' then item = fields[n + 1] elseif fields[n] == 'e' then epoch = fields[n + 1] end
    end
    names[#names + 1] = {entry[1], item, epoch}
end
return names
"""

# The time is that of Redis, so a preparer that was stopped between its decision and this call adds nothing.
_ENQUEUE = """
local time = redis.call('TIME')
if time[1] * 1000 + time[2] / 1000 > tonumber(ARGV[1]) then return 0 end
for n = 2, #ARGV, 5 do
    redis.call('XADD', KEYS[1], '*',
        'p', ARGV[n], 'i', ARGV[n + 1], 'e', ARGV[n + 2], 'j', ARGV[n + 3], 'r', ARGV[n + 4])
end
return 1
"""

# To write each id once for both takes half as long.
_FORGET = """
for n = 2, #ARGV, 500 do
    local last = math.min(n + 499, #ARGV)
    redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, n, last))
    redis.call('XDEL', KEYS[1], unpack(ARGV, n, last))
end
"""

# In one step, so that no engine reads an entry in between: an entry that no engine had read is never computed.
_REMOVE = """
local wanted, removed, start = {}, {}, '-'
for n = 3, #ARGV do wanted[ARGV[n]] = true end
if redis.call('EXISTS', KEYS[1]) == 0 then return removed end
if ARGV[2] == '1' then
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
        local about = {}
        for n = 1, #group, 2 do about[group[n]] = group[n + 1] end
        if about['name'] == ARGV[1] then start = '(' .. about['last-delivered-id'] end
    end
end
while true do
    local page = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', 500)
    for _, entry in ipairs(page) do
        local about = {}
        for n = 1, #entry[2], 2 do about[entry[2][n]] = entry[2][n + 1] end
        if wanted[about['j']] then
            redis.call('XACK', KEYS[1], ARGV[1], entry[1])
            redis.call('XDEL', KEYS[1], entry[1])
            removed[#removed + 1] = {about['i'] or '', about['e'] or ''}
        end
    end
    if #page < 500 then return removed end
    start = '(' .. page[#page][1]
end
"""


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """An entry to add to a stream of items. `payload` is the ItemRequest in msgpack."""

    item_id: int
    epoch: int
    job_id: str
    priority: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """Number of entries in a stream of items. Some `wait`; the others are being computed, or wait to be recorded."""

    length: int
    waiting: int


def stream_counts(redis: Redis, model: str) -> StreamCounts:
    """Count the entries of the stream of a model.

    The results on their way count as results of this model; with several models, `waiting` may be too low for a moment.
    """
    key = items_key(model)
    pipeline = redis.pipeline(transaction=True)
    pipeline.xlen(key)
    pipeline.xpending(key, ENGINE_GROUP)
    pipeline.xlen(RESULTS_KEY)
    length, pending, results = pipeline.execute(raise_on_error=False)
    for answer in (length, results):
        if isinstance(answer, Exception):
            raise answer
    in_flight = 0
    if isinstance(pending, ResponseError):
        if "NOGROUP" not in str(pending):  # NOGROUP: no engine has ever read from this stream
            raise pending
    else:
        in_flight = int(pending["pending"])
    return StreamCounts(length, max(length - in_flight - results, 0))


def queued_entries(redis: Redis, model: str) -> Iterator[tuple[bytes, int, int]]:
    """(entry id, item id, epoch) of every item in the stream of a model, waiting or in flight. Entries that identify no
    item are left out."""
    start = b"-"
    while True:
        page: Any = redis.eval(_LIST, 1, items_key(model), start, LIST_PAGE)
        for entry_id, item_id, epoch in page:
            item, item_epoch = read_number(item_id, 0, MAX_ITEM_ID), read_number(epoch, 0, MAX_EPOCH)
            if item is not None and item_epoch is not None:
                yield entry_id, item, item_epoch
        if len(page) < LIST_PAGE:
            return
        start = b"(" + page[-1][0]


def redis_time_ms(redis: Redis) -> float:
    """The time by the clock of Redis, in milliseconds."""
    seconds, microseconds = redis.time()
    return float(seconds * 1000 + microseconds / 1000)


def enqueue(redis: Redis, model: str, entries: Sequence[StreamEntry], until_ms: float) -> bool:
    """Add items to the stream of a model: all of them, or, when the clock of Redis is past `until_ms`, none.

    Returns whether they were added.
    """
    if not entries:
        return True
    fields: list[Any] = []
    for entry in entries:
        fields += (entry.payload, entry.item_id, entry.epoch, entry.job_id, entry.priority)
    return bool(redis.eval(_ENQUEUE, 1, items_key(model), until_ms, *fields))


def remove_jobs(
    redis: Redis, model: str, job_ids: Sequence[str], *, only_waiting: bool = False
) -> list[tuple[int, int]]:
    """Remove the items of jobs from the stream of a model, with `only_waiting` only those that no engine has read.

    Engines notice within a second that entries which they had read are gone, and stop computing them. Returns the
    (item id, epoch) of what was removed.
    """
    if not job_ids:
        return []
    removed: Any = redis.eval(_REMOVE, 1, items_key(model), ENGINE_GROUP, int(only_waiting), *job_ids)
    numbers = [(read_number(i, 0, MAX_ITEM_ID), read_number(e, 0, MAX_EPOCH)) for i, e in removed]
    return [(item_id, epoch) for item_id, epoch in numbers if item_id is not None and epoch is not None]


def remove_recorded(redis: Redis, result_ids: Sequence[bytes], items: Iterable[tuple[bytes, bytes]]) -> None:
    """Remove results, and then their items, given as (stream, entry id), from their streams and from the lists of
    entries in flight."""
    by_stream: dict[bytes, list[bytes]] = {}
    for stream, entry_id in items:
        by_stream.setdefault(stream, []).append(entry_id)
    pipeline = redis.pipeline(transaction=False)
    pipeline.eval(_FORGET, 1, RESULTS_KEY, RECORD_GROUP, *result_ids)
    for stream, ids in by_stream.items():
        pipeline.eval(_FORGET, 1, stream, ENGINE_GROUP, *ids)
    pipeline.execute()


def heartbeats(redis: Redis) -> list[Mapping[str, Any]]:
    """The heartbeats of the engines that are alive."""
    found: list[Mapping[str, Any]] = []
    for key in redis.scan_iter(match=engine_key("*"), count=1000):
        payload: Any = redis.get(key)
        try:
            heartbeat = msgspec.msgpack.decode(payload or b"")
        except DECODE_ERRORS:
            continue
        if isinstance(heartbeat, dict) and "engine_id" in heartbeat:
            found.append(heartbeat)
    return found
