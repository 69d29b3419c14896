"""Stream entries that nobody can read: each is set aside, once, and nothing else stops."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from engine.lanes.held_items import HeldItems
from engine.lanes.pulled_item import PulledItem
from engine.wire import item_messages, redis_keys
from engine.wire.item_messages import ItemRequest, ItemResult
from engine.wire.request_terms import Sampling
from tests.engines import running_engine
from tests.services import RedisServer, wait_for

KEY = redis_keys.items_key("sim")
ITEM: dict[str, Any] = {
    "item_id": 3,
    "epoch": 1,
    "job_id": "job",
    "token_ids": [5, 6, 7],
    "sampling": {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True},
}


def payload(**changes: Any) -> bytes:
    return msgspec.msgpack.encode({**ITEM, **changes})


NOT_IDENTIFIED: list[dict[bytes, bytes]] = [
    {b"p": b"<garbage>", b"i": b"1" + b"0" * 30, b"e": b"1"},
    {b"p": b"<garbage>", b"i": b"9" * 6000, b"e": b"1"},
    {b"p": b"", b"i": b"9223372036854775808", b"e": b"1"},
    {b"p": b"\xff\xfe", b"i": b"-1", b"e": b"1"},
    {b"p": b"\xff\xfe", b"i": b"3", b"e": b"2147483648"},
    {b"p": b"\xc1", b"i": b"three", b"e": b"1"},
    {b"p": payload()[:-1]},
    {b"nothing": b"at all"},
    {b"\xff\xfe\x00": b"\x00" * 100_000},
    {b"i": b"3", b"p": b"\xc1"},
]
IDENTIFIED = [
    b"",
    b"\x00",
    b"\xc1 not msgpack",
    b"\x91" * 100_000,  # nested lists
    payload()[:20],
    payload(item_id=-1),
    payload(item_id=2**63),
    payload(epoch=2**31),
    payload(n=0),
    payload(n=10**9),
    payload(n="two"),
    payload(priority=2**40),
    payload(token_ids=[]),
    payload(token_ids=[-1]),
    payload(token_ids="text"),
    payload(job_id=b"\xff\xfe"),
    payload(deadline_unix_s=float("nan")),
    payload(deadline_unix_s=float("inf")),
    payload(sampling={}),
    payload(sampling={"max_tokens": 4, "temperature": "hot"}),
]


def add_good(redis: Redis, item_id: int) -> None:
    item = ItemRequest(item_id, 1, "job", [5, 6, item_id % 100], Sampling(max_tokens=4, ignore_eos=True))
    redis.xadd(KEY, {"p": item_messages.encode(item), "i": item_id, "e": 1, "j": "job", "r": 0})


def results(redis: Redis) -> list[ItemResult]:
    return [
        item_messages.decode_item_result(fields[b"p"])
        for _, fields in redis.xrange(redis_keys.RESULTS_KEY) or ()
    ]


def unreadable(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "cannot be read and is removed" in r.getMessage()]


def test_entries_that_identify_no_item_are_removed_and_logged_once(
    tmp_path: Path, server: RedisServer, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    for fields in NOT_IDENTIFIED:
        redis.xadd(KEY, fields)
    add_good(redis, 1)
    with caplog.at_level(logging.INFO), running_engine(tmp_path, redis_url=server.url):
        wait_for(lambda: len(results(redis)) == 1, "the item behind the unreadable entries")
        wait_for(lambda: redis.xlen(KEY) == 1, "the removal of the unreadable entries")
    assert len(unreadable(caplog)) == len(NOT_IDENTIFIED)
    assert all(len(line) < 2000 for line in unreadable(caplog)), "however large the entry is"
    caplog.clear()
    with caplog.at_level(logging.INFO), running_engine(tmp_path, redis_url=server.url):
        add_good(redis, 2)
        wait_for(lambda: len(results(redis)) == 2, "an item after a restart")
    assert not unreadable(caplog)


def is_well_formed(data: bytes) -> bool:
    try:
        item_messages.decode_item_request(data)
    except msgspec.ValidationError:
        return True  # well-formed, but invalid
    except msgspec.DecodeError:
        return False
    return True


@pytest.mark.parametrize("engine_restarts", [False, True])
def test_an_invalid_item_fails_and_an_entry_that_was_damaged_is_removed_so_that_it_counts_as_lost(
    tmp_path: Path, server: RedisServer, redis: Redis, engine_restarts: bool
) -> None:
    for number, data in enumerate(IDENTIFIED):
        redis.xadd(KEY, {"p": data, "i": 1000 + number, "e": 7})
        add_good(redis, number)
    if engine_restarts:  # the engine that had read them died
        redis.xgroup_create(KEY, redis_keys.ENGINE_GROUP, id="0")
        redis.xreadgroup(redis_keys.ENGINE_GROUP, "engine-0", {KEY: ">"})
    num_damaged = sum(not is_well_formed(data) for data in IDENTIFIED)
    num_answered = 2 * len(IDENTIFIED) - num_damaged
    with running_engine(tmp_path, redis_url=server.url):
        wait_for(lambda: len(results(redis)) >= num_answered, "all results")
        wait_for(
            lambda: redis.xpending(KEY, redis_keys.ENGINE_GROUP)["pending"] == 0, "the end of all claims"
        )
        wait_for(lambda: redis.xlen(KEY) == num_answered, "the removal of the damaged entries")
    found = results(redis)
    assert len(found) == num_answered
    good = [result for result in found if result.error_code is None]
    assert sorted(result.item_id for result in good) == list(range(len(IDENTIFIED)))


def test_a_task_that_an_unknown_error_ends_goes_on_and_the_traceback_is_logged_once(
    tmp_path: Path,
    server: RedisServer,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = HeldItems.take_in
    failures = 3

    def take_in(self: HeldItems, entry_id: bytes, fields: dict[bytes, bytes]) -> PulledItem | None:
        nonlocal failures
        if failures and len(self.by_entry) >= 3 - failures:  # the others have been taken in already
            failures -= 1
            raise ZeroDivisionError("a bug")
        return real(self, entry_id, fields)

    monkeypatch.setattr(HeldItems, "take_in", take_in)
    for item_id in range(20):
        add_good(redis, item_id)
    with caplog.at_level(logging.INFO), running_engine(tmp_path, redis_url=server.url):
        wait_for(lambda: len(results(redis)) == 20, "all results")
    assert sorted(result.item_id for result in results(redis)) == list(range(20)), "each once"
    reports = [record for record in caplog.records if "_pull failed" in record.getMessage()]
    assert len(reports) == 3
    assert [bool(record.exc_info) for record in reports] == [True, False, False]
