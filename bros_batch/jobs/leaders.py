"""Which items are computing the answers to which content keys just now, in Redis.

This only saves duplicate work. An entry may be out of date, so whoever finds one checks in the database whether the
item is still queued; and if Redis loses all entries, some answers are computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis import Redis

from engine.wire.stream_entries import MAX_ITEM_ID, read_number

# Entries of items that were taken back stay behind. Beyond this number (about 10 MB), all are dropped.
MAX_LEADERS = 100_000


def find_leaders(redis: Redis, model: str, keys: Sequence[bytes]) -> dict[bytes, int]:
    """The items that were last said to compute the answers to these keys."""
    if not keys:
        return {}
    found: dict[bytes, int] = {}
    values: Any = redis.hmget(_name(model), list(keys))
    for key, value in zip(keys, values, strict=True):
        item_id = read_number(value, 0, MAX_ITEM_ID)
        if item_id is not None:
            found[key] = item_id
    return found


def set_leaders(redis: Redis, model: str, leaders: Mapping[bytes, int]) -> None:
    """Say which items compute the answers to which keys from now on."""
    if not leaders:
        return
    pipeline = redis.pipeline(transaction=False)
    pipeline.hlen(_name(model))
    pipeline.hset(_name(model), mapping=dict(leaders))  # type: ignore[arg-type]
    length, _ = pipeline.execute()
    if length > MAX_LEADERS:
        redis.delete(_name(model))


def remove_leaders(redis: Redis, model: str, keys: Iterable[bytes]) -> None:
    """Forget who computes the answers to these keys: they are there, or nobody does any more."""
    names = list(keys)
    if names:
        redis.hdel(_name(model), *names)


def _name(model: str) -> str:
    return f"bros:leaders:{model}"
