"""What Redis holds of the jobs: queued items, results on their way back, and the heartbeats of engines.

All of it may be gone at any moment; the database knows what has to be done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from redis import Redis

from bros_batch.db import ended_items
from bros_batch.db.connections import reading
from bros_batch.jobs.worker import Worker
from engine.wire.protocol import CANCEL_CHANNEL, ENGINE_GROUP, engine_key, items_key

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


def queue_length(redis: Redis, model: str) -> int:
    """Number of items in the stream of a model, those that an engine is working on included."""
    return int(redis.xlen(items_key(model)))


def queued_entries(redis: Redis, model: str) -> Iterator[tuple[bytes, int, int]]:
    """(entry id, item id, epoch) of every item in the stream of a model, waiting or in flight."""
    start = b"-"
    while True:
        page: Any = redis.eval(_LIST, 1, items_key(model), start, LIST_PAGE)
        for entry_id, item_id, epoch in page:
            yield entry_id, _int(item_id), _int(epoch)
        if len(page) < LIST_PAGE:
            return
        start = b"(" + page[-1][0]


def enqueue(redis: Redis, model: str, payloads: Iterable[tuple[int, int, bytes]]) -> None:
    """Add items, given as (item id, epoch, ItemRequest in msgpack), to the stream of a model."""
    pipeline = redis.pipeline(transaction=False)
    key = items_key(model)
    for item_id, epoch, payload in payloads:
        pipeline.xadd(key, {"p": payload, "i": item_id, "e": epoch})
    pipeline.execute()


def acknowledge(redis: Redis, key: str | bytes, group: str, entry_ids: Iterable[bytes]) -> None:
    """Remove entries from a stream and from the group's list of entries in flight."""
    ids = list(entry_ids)
    if ids:
        pipeline = redis.pipeline(transaction=False)
        pipeline.xack(key, group, *ids)
        pipeline.xdel(key, *ids)
        pipeline.execute()


def withdraw_job(worker: Worker, job_id: str, model: str) -> int:
    """Tell engines that a job is cancelled, and remove its ended items from the stream. Returns how many there were.

    This only saves work: a result that arrives all the same changes nothing.
    """
    redis = worker.redis
    redis.publish(CANCEL_CHANNEL, job_id)
    entries = list(queued_entries(redis, model))
    with reading(worker.database) as connection:
        ended = ended_items.ended_among(connection, job_id, [item_id for _, item_id, _ in entries])
    stale = [entry_id for entry_id, item_id, _ in entries if item_id in ended]
    acknowledge(redis, items_key(model), ENGINE_GROUP, stale)
    redis.publish(CANCEL_CHANNEL, job_id)  # again, for an engine that was reading some of them the first time
    return len(stale)


def heartbeats(redis: Redis) -> list[Mapping[str, Any]]:
    """The heartbeats of the engines that are alive."""
    found: list[Mapping[str, Any]] = []
    for key in redis.scan_iter(match=engine_key("*"), count=1000):
        payload: Any = redis.get(key)
        try:
            heartbeat = msgspec.msgpack.decode(payload or b"")
        except (msgspec.DecodeError, ValueError):
            continue
        if isinstance(heartbeat, dict) and "engine_id" in heartbeat:
            found.append(heartbeat)
    return found


def _int(value: bytes) -> int:
    try:
        return int(value)
    except ValueError:
        return 0
