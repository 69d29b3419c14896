"""Which items compute which answers just now, in a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import pytest
from redis import Redis

from bros_batch.documents.content_key import KEY_BYTES
from bros_batch.jobs import leaders
from bros_batch.jobs.leaders import find_leaders, remove_leaders, set_leaders
from tests.services import redis_server


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with redis_server() as server, server.cli() as client:
        yield client


def keys(first: int, number: int) -> list[bytes]:
    return [sha256(b"%d" % n).digest()[:KEY_BYTES] for n in range(first, first + number)]


def test_leaders_are_found_until_they_are_removed(redis: Redis) -> None:
    odd = [b" \n\0\r" * 4, b"0123456789012345"]  # what separates texts, or looks like an id
    known = {key: number for number, key in enumerate([*keys(0, 9_000), *odd], 2**62)}
    set_leaders(redis, "m", known)
    assert find_leaders(redis, "m", [*known, *keys(9_000, 3)]) == known
    assert find_leaders(redis, "other", list(known)) == find_leaders(redis, "m", []) == {}
    set_leaders(redis, "m", {odd[0]: 7})
    remove_leaders(redis, "m", [*keys(10, 9_000), b"", b"of another length"])
    left = {key: number for key, number in known.items() if key in {*keys(0, 10), *odd}} | {odd[0]: 7}
    assert find_leaders(redis, "m", list(known)) == left
    assert redis.hlen("bros:leaders:m") == len(left)


def test_too_many_leaders_are_forgotten(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaders, "MAX_LEADERS", 5)
    set_leaders(redis, "few", dict.fromkeys(keys(0, 6), 1))
    set_leaders(redis, "few", dict.fromkeys(keys(6, 2), 2))
    assert find_leaders(redis, "few", keys(0, 8)) == dict.fromkeys(keys(6, 2), 2)


def test_what_is_no_id_is_no_leader(redis: Redis) -> None:
    (key,) = keys(0, 1)
    redis.hset("bros:leaders:odd", key, b"x")
    assert find_leaders(redis, "odd", [key]) == {}
