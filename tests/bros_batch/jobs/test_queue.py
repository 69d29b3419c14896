"""What waits in a model's stream: seconds of work, the most urgent first, and nothing of a stopped job."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection

from bros_batch.db import job_control, pending_items
from bros_batch.db.connections import writing
from bros_batch.db.pending_items import QueuedItem
from bros_batch.jobs import prepare as prepare_module
from bros_batch.jobs import tasks
from bros_batch.jobs.prepare import prepare
from bros_batch.jobs.queue_room import ITEMS_WITHOUT_ENGINE, QueueRoom, queue_room
from bros_batch.jobs.streams import StreamEntry, enqueue, redis_time_ms, stream_counts
from bros_batch.jobs.withdraw import withdraw_job
from bros_batch.web.change_job import CHANGES, Change
from engine.wire.redis_keys import ENGINE_GROUP, engine_key
from tests.bros_batch.world import World, batch_lines


def change(world: World, job_id: str, name: Change) -> None:
    """Change a job as the web server does."""
    with writing(world.database) as connection:
        job = CHANGES[name](connection, job_id)
    if name in ("pause", "cancel"):
        withdraw_job(world.worker, job.id, job.model)


def fill(world: World, **engine: Any) -> int:
    """Prepare for an engine that says these things about itself. Returns how many items were queued."""
    world.engine.announce(**engine)
    return prepare(world.worker, "sim", float("inf")).queued


# How much -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ({"max_in_flight": 24, "items_per_s": 0}, 24),
        ({"max_in_flight": 24, "items_per_s": 10}, 24 + 40),
        ({"max_in_flight": 24, "items_per_s": 1e6}, 300),
        ({"max_in_flight": 24, "items_per_s": float("nan")}, 24),
        ({"max_in_flight": "many", "items_per_s": -5}, 0),
    ],
)
@pytest.mark.parametrize("options", [{"queue_s": 4.0, "queue_max_items": 300}], ids=["4 s"])
def test_the_stream_holds_what_the_engines_hold_and_seconds_of_work(
    world: World, engine: dict[str, Any], expected: int
) -> None:
    world.running(batch_lines(400))
    assert fill(world, **engine) == expected
    assert fill(world, **engine) == 0
    taken = world.engine.take(10)
    assert fill(world, **engine) == min(10, expected), "what an engine has read does not wait any more"
    world.engine.answer(taken)
    assert fill(world, **engine) == 0, "what has been computed but not recorded does not wait either"


def test_every_engine_that_serves_the_model_counts_and_no_other(world: World) -> None:
    about = {"max_in_flight": 10, "items_per_s": 5.0}
    for name, model in (("a", "sim"), ("b", "sim"), ("c", "another")):
        heartbeat = {"engine_id": name, "model": model, **about}
        world.redis.set(engine_key(name), msgspec.msgpack.encode(heartbeat))
    world.redis.set(engine_key("d"), b"\xc1 garbage")
    world.redis.set(engine_key("e"), msgspec.msgpack.encode({"engine_id": "e", "model": ["sim"], **about}))
    seconds = world.settings.queue_s
    assert queue_room(world.worker, "sim").wanted == 20 + 10 * seconds


def test_something_waits_for_an_engine_that_starts(world: World) -> None:
    world.running(batch_lines(ITEMS_WITHOUT_ENGINE + 10))
    assert prepare(world.worker, "sim", float("inf")).queued == ITEMS_WITHOUT_ENGINE


@pytest.mark.parametrize("options", [{"queue_max_items": 20}])
def test_results_that_nobody_records_do_not_pile_up(world: World) -> None:
    world.running(batch_lines(200))
    while world.prepare().queued:
        world.engine.answer(world.engine.take())
    assert world.queue_length() == 20


def test_the_stream_is_low_when_less_than_half_of_what_is_wanted_waits() -> None:
    assert QueueRoom(wanted=10, free=6).is_low and not QueueRoom(wanted=10, free=5).is_low
    assert not QueueRoom(wanted=0, free=0).is_low


def test_counts_of_a_stream_that_no_engine_has_read_from(world: World) -> None:
    assert stream_counts(world.redis, "sim").waiting == 0
    world.running(batch_lines(3))
    world.prepare()
    assert stream_counts(world.redis, "sim").waiting == 3


# Pause and cancel ---------------------------------------------------------------------------------------------------


def test_a_job_that_is_resumed_before_its_items_were_taken_back_loses_none(world: World) -> None:
    job_id = world.running(batch_lines(20))
    world.prepare()
    with writing(world.database) as connection:
        job_control.pause_job(connection, job_id)
    with writing(world.database) as connection:
        job = job_control.resume_job(connection, job_id)
    assert withdraw_job(world.worker, job_id, job.model) == 20
    assert set(world.statuses(job_id)) == {"pending"}, "none is queued in the database and in no stream"
    assert world.prepare().queued == 20


def test_a_paused_job_has_nothing_in_the_stream(world: World) -> None:
    paused, other = world.running(batch_lines(40)), world.running(batch_lines(10))
    world.prepare()
    world.engine.take(5)
    change(world, paused, "pause")
    assert set(world.statuses(paused)) == {"pending"}
    assert {item.attempts for item in world.items(paused)} == {0}
    assert world.redis.xpending(world.engine.key, ENGINE_GROUP)["pending"] == 0, "engines hold none of them"
    assert world.prepare().queued == 0
    assert {each.item.job_id for each in world.engine.take()} == {other}
    change(world, paused, "resume")
    assert world.run_through(paused).succeeded == 40
    world.check_counts(paused)


def test_what_an_engine_has_computed_of_a_paused_job_counts(world: World) -> None:
    job_id = world.running(batch_lines(10))
    world.prepare()
    taken = world.engine.take(4)
    world.engine.answer(taken[:2], "before the pause")
    change(world, job_id, "pause")
    world.engine.answer(taken[2:3], "after the pause")
    assert world.record().changed == 3
    assert world.statuses(job_id) == ["succeeded"] * 3 + ["pending"] * 7
    change(world, job_id, "resume")
    assert world.prepare().queued == 7
    world.engine.answer(taken[3:], "late, and it runs again already")
    assert world.record().changed == 0
    world.engine.answer(world.engine.take())
    world.record()
    assert world.check_counts(job_id).succeeded == 10


def test_items_that_are_prepared_while_their_job_is_paused_are_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.running(batch_lines(10))
    claim = pending_items.claim_items

    def claim_then_pause(*arguments: Any, **options: Any) -> list[QueuedItem]:
        claimed = claim(*arguments, **options)
        monkeypatch.setattr(prepare_module, "enqueue", pause_then_enqueue)
        return claimed

    def pause_then_enqueue(*arguments: Any) -> bool:
        change(world, job_id, "pause")
        return enqueue(*arguments)

    monkeypatch.setattr(pending_items, "claim_items", claim_then_pause)
    world.prepare()
    assert world.queue_length() == 0
    assert set(world.statuses(job_id)) == {"pending"}


def test_the_pump_takes_back_what_the_web_server_could_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.running(batch_lines(10))
    world.prepare()
    world.engine.take(3)
    with writing(world.database) as connection:  # Redis was away, or the web server died here
        job_control.pause_job(connection, job_id)
    monkeypatch.setattr(tasks, "get_worker", lambda: world.worker)
    tasks.pump()
    assert world.queue_length() == 0
    assert set(world.statuses(job_id)) == {"pending"}


def test_an_expired_job_has_nothing_in_the_stream(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = world.running(batch_lines(10), window_s=-1.0)
    world.prepare()
    world.engine.take(3)
    world.sweep()
    monkeypatch.setattr(tasks, "get_worker", lambda: world.worker)
    tasks.finalize(job_id)
    assert world.queue_length() == 0
    assert world.job(job_id).status == "expired"


# Priority -----------------------------------------------------------------------------------------------------------


def in_stream(world: World) -> list[str]:
    """The jobs of the waiting items, in the order in which an engine reads them."""
    return [each.item.job_id for each in world.engine.take()]


@pytest.mark.parametrize("options", [{"queue_max_items": 50}], ids=["50 items"])
def test_a_more_urgent_job_goes_before_what_waits(world: World) -> None:
    now_s = time.time()
    low = world.running(batch_lines(200))
    world.prepare()
    running = world.engine.take(8)
    dated = world.running(batch_lines(3), deadline_at=now_s + 5000)
    world.prepare()
    urgent = world.running(batch_lines(2), priority=10)
    world.prepare()
    most_urgent = world.running(batch_lines(1), priority=10, deadline_at=now_s + 5000)
    world.prepare()
    assert in_stream(world)[:10] == [most_urgent, urgent, urgent, dated, dated, dated] + [low] * 4
    assert {item.attempts for item in world.items(low)} == {0}
    assert [item.status for item in world.items(low)[:8]] == ["queued"] * 8, "what runs goes on"
    world.engine.answer(running)
    assert world.record().changed == 8


@pytest.mark.parametrize("options", [{"queue_max_items": 50}], ids=["50 items"])
def test_a_job_that_becomes_runnable_while_others_are_prepared_goes_first_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = world.running(batch_lines(200))
    world.prepare()
    world.engine.answer(world.engine.take(20))
    world.record()
    urgent: list[str] = []

    def room_just_before_it_is_ingested(*arguments: Any) -> QueueRoom:
        room = queue_room(*arguments)
        if not urgent:
            urgent.append(world.running(batch_lines(1), priority=10))
        return room

    monkeypatch.setattr(prepare_module, "queue_room", room_just_before_it_is_ingested)
    world.prepare()
    assert in_stream(world) == urgent + [low] * 49


@pytest.mark.parametrize("options", [{"queue_max_items": 50}], ids=["50 items"])
def test_a_less_urgent_or_equal_job_waits_its_turn(world: World) -> None:
    first = world.running(batch_lines(60), priority=5)
    world.prepare()
    before = [item.epoch for item in world.items(first)]
    world.running(batch_lines(3), priority=5)
    world.running(batch_lines(3), priority=0)
    world.prepare()
    assert [item.epoch for item in world.items(first)] == before, "nothing was taken back"
    assert set(in_stream(world)) == {first}


@pytest.mark.parametrize("options", [{"queue_max_items": 50}], ids=["50 items"])
def test_items_are_taken_back_once_for_a_job_and_not_at_every_round(world: World) -> None:
    low = world.running(batch_lines(100))
    world.prepare()
    urgent = world.running(batch_lines(100), priority=1)
    world.prepare()
    epochs = [item.epoch for item in world.items(low)]
    for _ in range(3):
        world.prepare()
        world.engine.answer(world.engine.take(10))
        world.record()
    assert [item.epoch for item in world.items(low)] == epochs
    assert world.run_through(urgent).succeeded == 100
    assert world.run_through(low).succeeded == 100


@pytest.mark.parametrize("options", [{"queue_max_items": 50}], ids=["50 items"])
def test_the_pump_prepares_for_an_urgent_job_although_the_stream_is_full(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatched: list[tuple[str, ...]] = []
    monkeypatch.setattr(tasks, "get_worker", lambda: world.worker)
    monkeypatch.setattr(tasks, "dispatch", lambda *arguments: dispatched.append(arguments))
    world.running(batch_lines(100))
    world.prepare()
    tasks.pump()
    assert dispatched == []
    world.running(batch_lines(1), priority=10)
    tasks.pump()
    assert dispatched == [("prepare", "sim")]


# Slow preparers -----------------------------------------------------------------------------------------------------


def test_a_preparer_that_was_stopped_adds_nothing_that_others_have_queued_since(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep returns the items of a worker that stands still, and another worker prepares them."""
    job_id = world.running(batch_lines(20))
    calls = 0

    def enqueue_after_a_long_stop(
        redis: Any, model: str, entries: list[StreamEntry], until_ms: float
    ) -> bool:
        nonlocal calls
        calls += 1
        if calls > 1:
            return enqueue(redis, model, entries, until_ms)
        assert world.sweep(later_s=1000).lost == 20
        assert world.prepare().queued == 20
        return enqueue(redis, model, entries, redis_time_ms(redis) - 1)

    monkeypatch.setattr(prepare_module, "enqueue", enqueue_after_a_long_stop)
    world.prepare()
    assert world.queue_length() == 20
    taken = world.engine.take()
    assert sorted(each.item.item_id for each in taken) == [item.id for item in world.items(job_id)]
    assert {each.item.epoch for each in taken} == {2}
    world.engine.answer(taken)
    assert world.record().changed == 20
    assert world.check_counts(job_id).succeeded == 20


def test_a_preparer_that_is_only_slow_adds_its_items_late(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.running(batch_lines(20))
    late = [False]

    def enqueue_late_once(redis: Any, model: str, entries: list[StreamEntry], until_ms: float) -> bool:
        if not late[0]:
            late[0] = True
            until_ms = redis_time_ms(redis) - 1
        return enqueue(redis, model, entries, until_ms)

    monkeypatch.setattr(prepare_module, "enqueue", enqueue_late_once)
    assert world.prepare().queued == 20
    assert {item.epoch for item in world.items(job_id)} == {1}
    assert world.run_through(job_id).succeeded == 20


def test_items_that_are_recorded_during_a_sweep_are_not_reported_as_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a busy machine items wait in the stream for longer than `lost_after_s`, so every sweep looks at them."""
    from bros_batch.db import lost_items

    job_id = world.running(batch_lines(30))
    world.prepare()
    taken = world.engine.take()
    read = lost_items.items_queued_long

    def read_then_record(connection: Connection, *arguments: Any) -> Any:
        old = read(connection, *arguments)
        if old:
            monkeypatch.setattr(lost_items, "items_queued_long", read)
            connection.commit()
            world.engine.answer(taken[:20])
            assert world.record().changed == 20
        return old

    monkeypatch.setattr(lost_items, "items_queued_long", read_then_record)
    swept = world.sweep(later_s=1000)
    assert swept.lost == 0
    assert not [record for record in caplog.records if "lost" in record.getMessage()]
    assert sorted(world.statuses(job_id)) == ["queued"] * 10 + ["succeeded"] * 20
