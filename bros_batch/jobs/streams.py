"""What Redis holds of a job: deliveries of its items, results on their way back, and who is at work.

All of it may be gone the next moment. The database knows what must then be done again.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import msgspec
from redis import Redis
from sqlalchemy import Engine

from bros_batch.db import ended_items, lost_items, redis_generation
from bros_batch.db.connections import reading, writing
from bros_batch.settings import get_settings
from engine.wire.protocol import CANCEL_CHANNEL, ENGINE_GROUP, GENERATION_KEY, engine_key, items_key

# A turn that is not renewed for this long belongs to a dead worker.
TURN_TTL_MS = 5_000
LIST_PAGE = 1_000

# Only the names of deliveries leave Redis, not their payloads: thousands of documents' tokens.
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
_RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"
_RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"


@cache
def get_redis() -> Redis:
    """This process's connections. Made on first use, so after a fork."""
    return connect(get_settings().resolved_redis_url)


def connect(url: str) -> Redis:
    """`unix:///path` or `redis://host:port/db`."""
    return Redis.from_url(url, socket_connect_timeout=5.0, socket_timeout=30.0)


# Deliveries -----------------------------------------------------------------------------------------------------------


def live_deliveries(redis: Redis, model: str) -> Iterator[tuple[bytes, int, int]]:
    """(entry id, item id, epoch) of every delivery that waits or is in flight."""
    start = b"-"
    while True:
        page: Any = redis.eval(_LIST, 1, items_key(model), start, LIST_PAGE)
        for entry_id, item_id, epoch in page:
            yield entry_id, _int(item_id), _int(epoch)
        if len(page) < LIST_PAGE:
            return
        start = b"(" + page[-1][0]


def deliver(redis: Redis, model: str, payloads: Iterable[tuple[int, int, bytes]]) -> None:
    """Add (item id, epoch, ItemRequest as msgpack) to the model's stream."""
    pipeline = redis.pipeline(transaction=False)
    key = items_key(model)
    for item_id, epoch, payload in payloads:
        pipeline.xadd(key, {"p": payload, "i": item_id, "e": epoch})
    pipeline.execute()


def acknowledge(redis: Redis, key: str | bytes, group: str, entry_ids: Iterable[bytes]) -> None:
    """Take entries out of a stream and off everybody's list of what is in flight."""
    ids = list(entry_ids)
    if ids:
        pipeline = redis.pipeline(transaction=False)
        pipeline.xack(key, group, *ids)
        pipeline.xdel(key, *ids)
        pipeline.execute()


def withdraw_job(database: Engine, redis: Redis, job_id: str, model: str) -> int:
    """Tell engines that a job is cancelled, and take out what they have not finished of it. Best effort: a result
    that comes all the same changes nothing. Returns how many deliveries were taken out."""
    redis.publish(CANCEL_CHANNEL, job_id)
    live = list(live_deliveries(redis, model))
    with reading(database) as connection:
        ended = ended_items.ended_among(connection, job_id, [item_id for _, item_id, _ in live])
    stale = [entry_id for entry_id, item_id, _ in live if item_id in ended]
    acknowledge(redis, items_key(model), ENGINE_GROUP, stale)
    redis.publish(CANCEL_CHANNEL, job_id)  # again, for an engine that was reading some of it the first time
    return len(stale)


def heartbeats(redis: Redis) -> list[Mapping[str, Any]]:
    """What the engines that live say of themselves."""
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


# Generation -----------------------------------------------------------------------------------------------------------


def ensure_generation(database: Engine, redis: Redis) -> int:
    """See that this is the Redis which queued items were delivered to. If it came back empty, or is another one,
    all of them return to pending; answers how many."""
    current: Any = redis.get(GENERATION_KEY)
    with reading(database) as connection:
        if current is not None and current.decode() == redis_generation.get_generation(connection):
            return 0
    with writing(database) as connection:
        seen = redis_generation.get_generation(connection, lock=True)
        current = redis.get(GENERATION_KEY)
        if current is not None and current.decode() == seen:
            return 0  # somebody was faster
        returned = lost_items.return_all_queued(connection)
        generation = secrets.token_hex(12)
        redis_generation.set_generation(connection, generation)
    # Last: a death before this line is seen as another empty Redis, and nothing is lost by returning twice.
    redis.set(GENERATION_KEY, generation)
    return returned


# Turns ----------------------------------------------------------------------------------------------------------------


class Turn:
    """The right to be the one that does something, as long as it is renewed. A courtesy that saves work twice
    done; what is done must be right without it."""

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key
        self._token = secrets.token_hex(8)

    def take(self) -> bool:
        return bool(self._redis.set(self._key, self._token, nx=True, px=TURN_TTL_MS))

    def renew(self) -> None:
        self._redis.eval(_RENEW, 1, self._key, self._token, TURN_TTL_MS)

    def release(self) -> None:
        self._redis.eval(_RELEASE, 1, self._key, self._token)


@contextmanager
def turn(redis: Redis, name: str) -> Iterator[Turn | None]:
    """The turn at `name`, or None while another has it."""
    held = Turn(redis, f"bros:turn:{name}")
    if not held.take():
        yield None
        return
    try:
        yield held
    finally:
        held.release()


def _int(value: bytes) -> int:
    try:
        return int(value)
    except ValueError:
        return 0
