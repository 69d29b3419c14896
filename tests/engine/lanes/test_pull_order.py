"""What a full engine takes in, and what it does with items that are taken away from it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from bros_batch.jobs.streams import remove_jobs
from engine.core.terms import Lane
from engine.runner.simulated import SimulatedCost, SimulatedRunner
from engine.wire import item_messages, redis_keys
from engine.wire.client import EngineClient
from engine.wire.item_messages import ItemRequest
from engine.wire.protocol import Tokens
from engine.wire.request_terms import Sampling
from tests.engines import running_engine
from tests.factories import runner_info
from tests.services import RedisServer, wait_for

KEY = redis_keys.items_key("sim")
LONG = 15_000


def slow_runner() -> SimulatedRunner:
    info = runner_info(num_blocks=4000, block_size=16, max_model_len=20_000, max_num_seqs=4)
    return SimulatedRunner(info, cost=SimulatedCost(step_s=0.002), wait=time.sleep)


def add(
    redis: Redis,
    item_id: int,
    *,
    job_id: str = "job",
    tokens: int = LONG,
    priority: int = 0,
    num_outputs: int = 1,
) -> None:
    sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    item = ItemRequest(item_id, 1, job_id, [5, 6, 7 + item_id], sampling, num_outputs, priority=priority)
    fields: dict[Any, Any] = {"i": item_id, "e": 1, "j": job_id, "r": priority}
    redis.xadd(KEY, {"p": item_messages.encode(item), **fields})


def ended(redis: Redis) -> list[int]:
    """The items with results, in the order in which they ended."""
    entries: Any = redis.xrange(redis_keys.RESULTS_KEY)
    return [item_messages.decode_item_result(fields[b"p"]).item_id for _, fields in entries]


def num_held(redis: Redis) -> int:
    if not redis.exists(KEY) or not redis.xinfo_groups(KEY):
        return 0
    return int(redis.xpending(KEY, redis_keys.ENGINE_GROUP)["pending"])


def test_a_full_engine_takes_in_more_urgent_items_and_ends_them_first(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    for i in range(20):
        add(redis, i)
    with running_engine(tmp_path, slow_runner(), redis_url=server.url, be_prefetch=3) as engine:
        wait_for(lambda: num_held(redis) == 7, "a full engine")
        wait_for(lambda: engine.scheduler.num_requests(Lane.BE)[0] == 3, "all rows of bulk")
        remove_jobs(redis, "sim", ["job"], only_waiting=True)  # as prepare does for a more urgent job
        for i in range(100, 110):
            add(redis, i, job_id="urgent", tokens=5, priority=10)
        add(redis, 50)
        wait_for(lambda: len(ended(redis)) == 10, "the urgent items")
        assert ended(redis) == sorted(ended(redis)), "in their order"
        assert set(ended(redis)) == set(range(100, 110))
        assert num_held(redis) == 7, "what had been read goes on, and nothing less urgent was read"


def test_items_of_equal_priority_wait_until_there_is_room(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    for i in range(20):
        add(redis, i, priority=5)
    add(redis, 20, job_id="other", priority=5)
    with running_engine(tmp_path, slow_runner(), redis_url=server.url, be_prefetch=3):
        wait_for(lambda: num_held(redis) == 7, "a full engine")
        add(redis, 100, job_id="urgent", tokens=5, priority=6)  # behind items that are not more urgent
        remove_jobs(redis, "sim", ["job"])
        wait_for(lambda: ended(redis) == [100], "the urgent item")


def test_an_item_that_is_taken_back_computes_no_token_after_a_moment(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    for i in range(6):
        add(redis, i)
    add(redis, 10, job_id="other")
    with running_engine(tmp_path, slow_runner(), redis_url=server.url, be_prefetch=8) as engine:
        wait_for(lambda: num_held(redis) == 7, "all items in the engine")
        wait_for(lambda: engine.scheduler.num_requests(Lane.BE)[0] == 3, "all rows of bulk")
        assert len(remove_jobs(redis, "sim", ["job"])) == 6
        wait_for(
            lambda: engine.scheduler.num_requests(Lane.BE) == (1, 0), "only the other job's item is left"
        )
        assert ended(redis) == [], "what was taken back has no result"


def test_an_item_that_is_taken_back_shortly_before_its_end_has_its_result(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    add(redis, 1, tokens=150)
    with running_engine(tmp_path, slow_runner(), redis_url=server.url) as engine:
        wait_for(lambda: engine.scheduler.num_requests(Lane.BE)[0] == 1, "the item")
        wait_for(lambda: engine.scheduler.backlog.decoding[Lane.BE].requests, "its first token")
        remove_jobs(redis, "sim", ["job"])
        wait_for(lambda: ended(redis) == [1], "the result")


def test_an_engine_that_was_frozen_leaves_its_items_to_the_one_that_took_them_over(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    for i in range(3):
        add(redis, i)
    with running_engine(tmp_path, slow_runner(), redis_url=server.url, claim_timeout_s=1.5) as engine:
        wait_for(lambda: num_held(redis) == 3, "the items")
        entry_ids = [entry["message_id"] for entry in redis.xpending_range(KEY, "engines", "-", "+", 9)]
        redis.xclaim(KEY, redis_keys.ENGINE_GROUP, "another", 0, entry_ids, justid=True)
        wait_for(lambda: not engine.scheduler.has_work, "the end of the items here")
        owners = {entry["consumer"] for entry in redis.xpending_range(KEY, "engines", "-", "+", 9)}
        assert owners == {b"another"}
        assert ended(redis) == []


def test_results_that_wait_to_be_recorded_are_not_computed_again(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    for i in range(5):
        add(redis, i, tokens=3)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with running_engine(tmp_path / "a", redis_url=server.url, engine_id="a"):
        wait_for(lambda: len(ended(redis)) == 5, "the results")
    with running_engine(tmp_path / "b", redis_url=server.url, engine_id="b", claim_timeout_s=0.05):
        for i in (9, 10):  # many claim timeouts pass until the second one ends
            add(redis, i, tokens=3)
            wait_for(lambda i=i: i in ended(redis), "another item")
    entries: Any = redis.xrange(redis_keys.RESULTS_KEY)
    results = [item_messages.decode_item_result(fields[b"p"]) for _, fields in entries]
    assert {result.item_id for result in results if result.engine_id == "b"} == {9, 10}


def test_the_heartbeat_says_how_many_items_end_per_second(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    def heartbeat() -> dict[str, Any]:
        value: Any = redis.get(redis_keys.engine_key("engine-0"))
        return dict(msgspec.msgpack.decode(value)) if value else {}

    with running_engine(tmp_path, redis_url=server.url, max_num_seqs=4, be_prefetch=3):
        beat = wait_for(heartbeat, "the first heartbeat")
        assert (beat["max_in_flight"], beat["items_per_s"], beat["tokens_per_s"]) == (7, 0, 0)
        for i in range(50):
            add(redis, i, tokens=10)
        beat = wait_for(lambda: heartbeat() if heartbeat()["items_per_s"] else None, "the rate")
        assert beat["tokens_per_s"] == pytest.approx(beat["items_per_s"] * 13, rel=0.01)


async def test_a_chat_does_not_wait_until_all_outputs_of_all_items_have_been_taken_in(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    is_open = threading.Event()
    info = runner_info(num_blocks=4000, block_size=16, max_model_len=20_000, max_num_seqs=4)
    runner = SimulatedRunner(info, cost=SimulatedCost(step_s=0.002), wait=lambda _: is_open.wait(30))
    add(redis, 0)
    with running_engine(tmp_path, runner, redis_url=server.url, be_prefetch=200) as engine:
        wait_for(lambda: engine.scheduler.num_requests(Lane.BE)[0] == 1, "a step that lasts")
        with redis.pipeline(transaction=True) as all_at_once:
            for i in range(1, 101):
                add(all_at_once, i, num_outputs=128)
            all_at_once.execute()
        wait_for(lambda: num_held(redis) == 101, "all items in the engine")
        client = await EngineClient.connect(engine.url)
        async with client.submit([5], Sampling(max_tokens=100, ignore_eos=True)) as stream:
            await client.pulse(5.0)  # the engine has read the request
            is_open.set()
            async for message in stream:
                assert isinstance(message, Tokens)
                break
        assert sum(engine.scheduler.num_requests(Lane.BE)) < 6400, "half of them"
        await client.close()
        remove_jobs(redis, "sim", ["job"])
        wait_for(lambda: not engine.scheduler.has_work, "the end of what was taken back")
