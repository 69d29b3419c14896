"""A clock that is set forward or back by an hour, and runs that continue after another one took their job."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from bros_batch.db import job_leases
from bros_batch.db.connections import writing
from bros_batch.db.states import JobStatus
from bros_batch.jobs import ticker
from bros_batch.jobs.celery_app import app
from bros_batch.jobs.locks import LOCK_TTL_MS, end_tick, try_lock
from bros_batch.jobs.task_run import Progress
from tests.bros_batch.world import World, batch_lines
from tests.services import wait_for

HOUR_S = 3600.0


def test_a_lease_from_before_the_clock_was_set_back_does_not_hold_a_job(world: World) -> None:
    job_id = world.submit(batch_lines(3))
    with writing(world.database) as connection:
        statuses = (JobStatus.VALIDATING,)
        assert job_leases.take_lease(connection, job_id, statuses, 30.0, time.time() + HOUR_S)
    assert world.sweep().ingest == [job_id]
    assert world.ingest(job_id).progress is Progress.DONE
    world.check_counts(job_id)


def test_the_clocks_of_two_hosts_may_differ_by_as_much_as_a_lease_lasts(world: World) -> None:
    job_id = world.submit(batch_lines(3))
    lease_s = world.settings.lease_s
    with writing(world.database) as connection:
        ahead_s = time.time() + 0.9 * lease_s
        assert job_leases.take_lease(connection, job_id, (JobStatus.VALIDATING,), lease_s, ahead_s)
    assert world.sweep().ingest == []
    assert world.ingest(job_id).progress is Progress.NOT_OURS


def test_a_lock_from_before_the_clock_was_set_back_ends_in_seconds(world: World) -> None:
    with try_lock(world.redis, "x") as dead:
        assert dead is not None
        world.redis.pexpire("bros:lock:x", LOCK_TTL_MS + int(HOUR_S * 1000))
        with try_lock(world.redis, "x") as other:
            assert other is None, "its owner may be alive"
        assert 0 < world.redis.pttl("bros:lock:x") <= LOCK_TTL_MS


@pytest.fixture
def sent(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tasks that a ticker sends."""
    names: list[str] = []
    monkeypatch.setattr(ticker, "get_redis", lambda: world.redis)
    monkeypatch.setattr(ticker.Ticker, "producer", None)
    monkeypatch.setattr(ticker.Ticker, "apply_entry", lambda _self, entry, producer: names.append(entry.task))
    return names


def test_beat_ticks_by_the_monotonic_clock(
    world: World, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = ticker.Ticker(app=app)
    pause_s = beat.tick()
    assert sorted(sent) == ["bros.pump", "bros.sweep"]
    assert 0 < pause_s <= app.conf.beat_schedule["pump"]["schedule"]
    end_tick(world.redis, "pump")
    wall_s = time.time()
    monkeypatch.setattr(time, "time", lambda: wall_s - HOUR_S)
    wait_for(lambda: beat.tick() and sent[2:], "the next tick")
    assert sent[2] == "bros.pump"


def test_a_tick_is_sent_only_when_the_last_one_has_arrived(world: World, sent: list[str]) -> None:
    """Otherwise workers that are slower than the ticks would find ever more of them before everything else."""
    for _ in range(3):  # each ticker sends at its first tick
        ticker.Ticker(app=app).tick()
    assert sorted(sent) == ["bros.pump", "bros.sweep"]
    assert 0 < world.redis.pttl("bros:tick:pump") <= LOCK_TTL_MS, "a tick that is lost stops nothing"
    end_tick(world.redis, "pump")
    ticker.Ticker(app=app).tick()
    assert sorted(sent) == ["bros.pump", "bros.pump", "bros.sweep"]


def test_what_a_preparer_adds_after_its_items_went_to_another_changes_nothing(world: World) -> None:
    """The first preparer stops between its claim and its XADD, for longer than `lost_after_s`."""
    job_id = world.running(batch_lines(4))
    world.prepare()
    first = world.engine.take()
    world.redis.xdel(world.engine.key, *(taken.entry_id for taken in first))  # as if not yet added
    assert world.sweep(later_s=HOUR_S).lost == 4
    world.prepare()
    second = world.engine.take()
    assert [taken.item.epoch for taken in second] == [2] * 4
    world.engine.answer(first, "of the first")
    assert world.record().changed == 0
    world.engine.answer(second, "of the second")
    world.engine.answer([replace(taken, entry_id=b"1-1") for taken in second], "of the second, again")
    assert world.record().changed == 4
    world.finalize(job_id)
    job = world.check_counts(job_id)
    lines = world.file_lines(job.output_file_id)
    answers = [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines]
    assert (job.status, answers) == ("completed", ["of the second"] * 4)
