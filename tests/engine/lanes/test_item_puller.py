"""The item puller with a real Redis and the simulated runner."""

from __future__ import annotations

import time

import msgspec
from redis.exceptions import ResponseError

from bros_batch.jobs.streams import remove_jobs
from engine.core.terms import Lane
from engine.lanes.translation import sampling_params
from engine.runner.simulated import SimulatedCost, SimulatedRunner
from engine.wire import item_messages, redis_keys
from engine.wire.item_messages import ItemRequest, ItemResult
from engine.wire.request_terms import Sampling
from tests.engines import running_engine
from tests.factories import runner_info
from tests.services import wait_for

KEY = redis_keys.items_key("sim")
SAMPLING = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)


def add(redis, item_id: int, prompt: list[int] | None = None, **fields) -> bytes:
    item = ItemRequest(
        item_id, 1, "job", prompt or [5, 6, 7 + item_id % 100], fields.pop("sampling", SAMPLING), **fields
    )
    about = {"i": item_id, "e": 1, "j": item.job_id, "r": item.priority}
    return redis.xadd(KEY, {"p": item_messages.encode(item), **about})


def results(redis, count: int) -> dict[int, ItemResult]:
    """Wait for `count` results and return them by item id."""

    def read():
        entries = redis.xrange(redis_keys.RESULTS_KEY)
        return entries if len(entries) >= count else None

    decoded = [item_messages.decode_item_result(f[b"p"]) for _, f in wait_for(read)]
    assert len(decoded) == count
    return {r.item_id: r for r in decoded}


def read_as(redis, consumer: str, count: int) -> list[bytes]:
    """Take entries as an engine would that then goes silent."""
    redis.xgroup_create(KEY, redis_keys.ENGINE_GROUP, id="0", mkstream=True)
    redis.xreadgroup(redis_keys.ENGINE_GROUP, consumer, {KEY: ">"}, count=count)
    return [p["message_id"] for p in redis.xpending_range(KEY, redis_keys.ENGINE_GROUP, "-", "+", count)]


def num_pending(redis) -> int:
    """Number of entries that engines have claimed; 0 before the first engine has created the group."""
    try:
        return redis.xpending(KEY, redis_keys.ENGINE_GROUP)["pending"]
    except ResponseError:
        return 0


def held_by_job(redis) -> dict[str, list[int]]:
    """What the engine's heartbeat says of the items that it holds."""
    beat = redis.get(redis_keys.engine_key("engine-0"))
    return msgspec.msgpack.decode(beat)["jobs"] if beat else {}


def slow_runner(step_s: float) -> SimulatedRunner:
    info = runner_info(num_blocks=2000, block_size=16, max_model_len=20_000, max_num_seqs=8)
    return SimulatedRunner(info, cost=SimulatedCost(step_s=step_s), wait=time.sleep)


def test_items_get_results_and_stay_in_the_stream_until_recorded(tmp_path, server, redis):
    prompts = {i: list(range(3, 4 + i % 50)) for i in range(300)}
    entry_ids = {add(redis, i, prompt): i for i, prompt in prompts.items()}
    with running_engine(tmp_path, redis_url=server.url) as engine:
        answers = results(redis, 300)
        for i, answer in answers.items():
            expected = engine.runner.continuation(prompts[i], sampling_params(SAMPLING))
            assert [c.token_ids for c in answer.choices] == [expected]
            assert (answer.epoch, answer.job_id, answer.engine_id) == (1, "job", "engine-0")
            assert answer.prompt_tokens == len(prompts[i])
    assert redis.xlen(KEY) == 300, "only the recorder removes entries"
    for _, fields in redis.xrange(redis_keys.RESULTS_KEY):
        answer = item_messages.decode_item_result(fields[b"p"])
        assert fields[b"s"] == KEY.encode()
        assert entry_ids[fields[b"x"]] == answer.item_id


def test_an_engine_holds_no_more_than_it_has_room_for(tmp_path, server, redis):
    for i in range(50):
        add(redis, i, sampling=Sampling(max_tokens=15_000, ignore_eos=True))
    with running_engine(tmp_path, slow_runner(0.001), redis_url=server.url, max_num_seqs=8, be_prefetch=2):
        wait_for(lambda: num_pending(redis) == 10)
        held = wait_for(lambda: held_by_job(redis).get("job"), "a heartbeat with items")
        assert held is not None and held[0] == 10
        begun, tokens = wait_for(lambda: (now := held_by_job(redis)["job"])[1] and now[1:], "output") or (
            0,
            0,
        )
        assert 0 < begun <= 8 and tokens >= begun
    assert num_pending(redis) == 10


def test_bad_items_fail_alone(tmp_path, server, redis):
    add(redis, 1, list(range(3, 100)))
    add(redis, 2, [5, 400_000])
    redis.xadd(KEY, {"p": b"\xc1 not msgpack", "i": 3, "e": 7})
    redis.xadd(KEY, {"nothing": "at all"})
    add(redis, 4)
    with running_engine(tmp_path, redis_url=server.url, max_model_len=64):
        answers = results(redis, 3)
        wait_for(lambda: redis.xlen(KEY) == 3, "the removal of what cannot be read")
    assert (answers[1].error_code, answers[2].error_code) == ("context_length_exceeded", "invalid_request")
    assert "97 tokens" in (answers[1].error_message or "")
    assert "outside the vocabulary" in (answers[2].error_message or "")
    assert answers[4].error_code is None and len(answers[4].choices[0].token_ids) == 6


def test_several_choices_of_one_item(tmp_path, server, redis):
    add(redis, 1, n=3)
    with running_engine(tmp_path, redis_url=server.url):
        answer = results(redis, 1)[1]
    assert len(answer.choices) == 3
    assert {c.reason for c in answer.choices} == {"length"}


def test_entries_of_a_dead_engine_are_taken_over(tmp_path, server, redis):
    for i in range(5):
        add(redis, i)
    assert len(read_as(redis, "dead", 5)) == 5
    with running_engine(tmp_path, redis_url=server.url, claim_timeout_s=0.4):
        assert set(results(redis, 5)) == set(range(5))


def test_an_engine_resumes_its_own_entries_at_once_after_a_restart(tmp_path, server, redis):
    for i in range(5):
        add(redis, i)
    read_as(redis, "engine-0", 5)
    with running_engine(tmp_path, redis_url=server.url, claim_timeout_s=100_000.0):
        assert set(results(redis, 5)) == set(range(5))


def test_entries_that_a_draining_engine_releases_are_taken_at_once(tmp_path, server, redis):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for i in range(3):
        add(redis, i, sampling=Sampling(max_tokens=5000, ignore_eos=True))
    with running_engine(tmp_path / "a", slow_runner(0.01), redis_url=server.url, engine_id="a"):
        wait_for(lambda: num_pending(redis) == 3)
    assert redis.xlen(redis_keys.RESULTS_KEY) == 0
    with running_engine(
        tmp_path / "b", slow_runner(0.0), redis_url=server.url, engine_id="b", claim_timeout_s=3600.0
    ):
        assert set(results(redis, 3)) == {0, 1, 2}


def test_pulling_continues_after_redis_restarts_empty(tmp_path, server, redis):
    with running_engine(tmp_path, redis_url=server.url):
        add(redis, 1)
        results(redis, 1)
        server.restart()
        with server.cli() as fresh:
            add(fresh, 2)
            assert set(results(fresh, 1)) == {2}


def test_items_that_are_taken_back_end_without_a_result_and_make_room(tmp_path, server, redis):
    for i in range(4):
        add(redis, i, sampling=Sampling(max_tokens=15_000, ignore_eos=True))
    with running_engine(tmp_path, slow_runner(0.001), redis_url=server.url) as engine:
        wait_for(lambda: sum(engine.scheduler.num_requests(Lane.BE)) == 4)
        assert len(remove_jobs(redis, "sim", ["job"])) == 4
        wait_for(lambda: not engine.scheduler.has_work)
        add(redis, 5)
        assert set(results(redis, 1)) == {5}, "what was taken back has no result"


def test_the_heartbeat_describes_the_engine(tmp_path, server, redis):
    with running_engine(tmp_path, redis_url=server.url):
        beat = msgspec.msgpack.decode(wait_for(lambda: redis.get(redis_keys.engine_key("engine-0"))))
        assert beat["model"] == "sim"
        assert beat["stats"]["kv_blocks"] > 0
        assert 0 < redis.ttl(redis_keys.engine_key("engine-0")) <= 15
    assert redis.get(redis_keys.engine_key("engine-0")) is None, "a drained engine removes its heartbeat"
