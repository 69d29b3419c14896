"""Recovery from a flushed Redis, lost items, dead workers, abandoned and expired jobs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import event

from bros_batch.db import files, job_control, job_endings, pending_items
from bros_batch.db.connections import reading, writing
from bros_batch.db.job_leases import take_lease
from bros_batch.db.redis_generation import get_generation
from bros_batch.db.states import JobStatus
from bros_batch.jobs.generation import ensure_generation
from bros_batch.jobs.locks import try_lock
from bros_batch.jobs.streams import queued_entries
from bros_batch.jobs.task_run import Progress
from engine.wire.redis_keys import GENERATION_KEY
from tests.bros_batch.world import World, batch_line, batch_lines
from tests.services import RedisServer

LATER_S = 1000.0


def test_a_flushed_redis_is_recognized_by_its_generation(world: World, redis_server: RedisServer) -> None:
    job_id = world.running(batch_lines(20))
    world.prepare()
    early = world.engine.take(5)
    world.engine.answer(early[:2])
    world.record()
    redis_server.flush()
    assert world.sweep().returned == 18
    items = world.items(job_id)
    assert [item.status for item in items] == ["succeeded"] * 2 + ["pending"] * 18
    assert {item.attempts for item in items} == {0}, "this counts as no attempt"
    assert world.sweep().returned == 0
    world.prepare()
    world.engine.answer(early[2:], "from before the flush")
    assert world.record().changed == 0
    job = world.run_through(job_id)
    assert (job.status, job.succeeded) == ("completed", 20)
    world.check_counts(job_id)


def test_prepare_notices_a_restarted_redis(world: World, redis_server: RedisServer) -> None:
    job_id = world.running(batch_lines(3))
    world.prepare()
    redis_server.restart()
    assert world.prepare().queued == 3
    assert [item.epoch for item in world.items(job_id)] == [2, 2, 2]
    assert world.run_through(job_id).succeeded == 3


def test_a_worker_that_waits_finds_the_new_generation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would make another one, and items that the first worker enqueues would return to pending."""
    set_key = world.redis.set
    others: list[threading.Thread] = []

    def set_after_another_worker_asked(*arguments: str) -> object:
        monkeypatch.setattr(world.redis, "set", set_key)
        others.append(threading.Thread(target=ensure_generation, args=(world.worker,)))
        others[0].start()
        others[0].join(0.5)  # it either waits for the transaction of the first, or has ended
        return set_key(*arguments)

    world.running(batch_lines(3))
    monkeypatch.setattr(world.redis, "set", set_after_another_worker_asked)
    ensure_generation(world.worker)
    others[0].join(60)
    with reading(world.database) as connection:
        assert world.redis.get(GENERATION_KEY) == (get_generation(connection) or "").encode()


def test_the_redis_of_another_database_is_recognized(world: World) -> None:
    job_id = world.running(batch_lines(3))
    world.prepare()
    world.redis.set(GENERATION_KEY, "of another database")
    assert ensure_generation(world.worker) == 3
    with reading(world.database) as connection:
        assert world.redis.get(GENERATION_KEY) == (get_generation(connection) or "").encode()
    assert world.statuses(job_id) == ["pending"] * 3


def test_workers_that_find_redis_empty_agree_on_one_generation(world: World) -> None:
    job_id = world.running(batch_lines(50))
    world.prepare()
    world.redis.flushall()
    returned: list[int] = []
    threads = [
        threading.Thread(target=lambda: returned.append(ensure_generation(world.worker))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(returned) == 50
    assert ensure_generation(world.worker) == 0
    assert world.statuses(job_id) == ["pending"] * 50


def test_a_lost_item_returns_to_pending(world: World) -> None:
    job_id = world.running(batch_lines(5))
    world.prepare()
    names = list(queued_entries(world.redis, "sim"))
    assert [(item_id, epoch) for _, item_id, epoch in names] == [(item.id, 1) for item in world.items(job_id)]
    world.redis.xdel(world.engine.key, names[1][0], names[3][0])
    assert world.sweep().lost == 0, "too early to count as lost"
    assert world.sweep(LATER_S).lost == 2
    assert world.statuses(job_id) == ["queued", "pending", "queued", "pending", "queued"]
    assert [item.attempts for item in world.items(job_id)] == [0, 1, 0, 1, 0]
    assert world.run_through(job_id).succeeded == 5
    world.check_counts(job_id)


def test_an_item_that_waits_for_long_is_not_lost(world: World) -> None:
    job_id = world.running(batch_lines(2500))
    world.prepare()
    world.engine.answer(world.engine.take(7))  # answered but not yet recorded
    assert world.sweep(LATER_S).lost == 0
    assert set(world.statuses(job_id)) == {"queued"}


def test_an_item_lost_too_often_fails_with_engine_lost(world: World) -> None:
    job_id = world.running(batch_lines(2))
    for attempt in range(1, world.settings.max_attempts + 1):
        world.prepare()
        taken = world.engine.take()
        world.redis.xdel(world.engine.key, taken[0].entry_id)
        world.engine.answer(taken[1:])
        world.record()
        swept = world.sweep(LATER_S)
        assert world.items(job_id)[0].attempts == attempt
        world.check_counts(job_id)
    assert swept.finalize == [job_id]
    world.finalize(job_id)
    job = world.check_counts(job_id)
    assert (job.status, job.succeeded, job.failed) == ("completed", 1, 1)
    assert world.file_lines(job.error_file_id)[0]["error"]["code"] == "engine_lost"


def test_items_claimed_by_a_dead_preparer_return_to_pending(world: World) -> None:
    job_id = world.running(batch_lines(4))
    ensure_generation(world.worker)
    with writing(world.database) as connection:  # a preparer claims items and dies before it enqueues them
        assert len(pending_items.claim_items(connection, job_id, 3, time.time())) == 3
    assert world.sweep(LATER_S).lost == 3
    assert world.run_through(job_id).succeeded == 4


def test_abandoned_jobs_are_started_again(world: World) -> None:
    validating = world.submit(batch_lines(1))
    finalizing = world.running(batch_lines(1))
    world.prepare()
    world.engine.answer(world.engine.take())
    world.record()
    cancelling = world.running(batch_lines(1))
    world.cancel(cancelling)
    swept = world.sweep()
    assert swept.ingest == [validating]
    assert sorted(swept.finalize) == sorted([finalizing, cancelling])
    assert world.ingest(validating).progress is Progress.DONE
    assert world.finalize(finalizing).progress is Progress.DONE
    assert world.finalize(cancelling).progress is Progress.DONE
    swept = world.sweep()
    assert (swept.ingest, swept.finalize) == ([], [])


def test_a_lease_is_respected_until_it_runs_out(world: World) -> None:
    job_id = world.submit(batch_lines(1))
    with writing(world.database) as connection:
        assert take_lease(connection, job_id, (JobStatus.VALIDATING,), 30.0, time.time())
    assert world.sweep().ingest == []
    assert world.ingest(job_id).progress is Progress.NOT_OURS
    assert world.sweep(later_s=31.0).ingest == [job_id]


def test_a_job_whose_items_have_all_ended_is_finalized(world: World) -> None:
    job_id = world.running(batch_lines(1))
    world.prepare()
    world.engine.answer(world.engine.take())
    world.record()
    with writing(world.database) as connection:  # as if the transition had been lost
        connection.exec_driver_sql("UPDATE jobs SET status = 'in_progress', finalizing_at = NULL")
    assert world.sweep().finalize == [job_id]
    assert world.finalize(job_id).progress is Progress.DONE
    assert world.job(job_id).status == "completed"


@pytest.mark.parametrize("paused", [False, True])
def test_an_expired_job_keeps_its_results(world: World, paused: bool) -> None:
    job_id = world.running(batch_lines(6), window_s=500)
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(taken[:2])
    world.record()
    if paused:
        with writing(world.database) as connection:
            job_control.pause_job(connection, job_id)
    assert world.sweep().finalize == []
    assert world.sweep(LATER_S).finalize == [job_id]
    world.engine.answer(taken[2:3])  # comes just in time
    world.record()
    world.finalize(job_id)
    job = world.check_counts(job_id)
    assert (job.status, job.succeeded, job.expired) == ("expired", 3, 3)
    assert job.expired_at is not None and job.completed_at is None
    assert len(world.file_lines(job.output_file_id)) == 3
    errors = world.file_lines(job.error_file_id)
    assert [line["custom_id"] for line in errors] == ["doc-3", "doc-4", "doc-5"]
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}
    world.engine.answer(taken[3:])
    assert world.record().changed == 0, "too late"


def test_a_job_expires_at_its_deadline(world: World) -> None:
    job_id = world.running(batch_lines(1), deadline_at=time.time() + 100)
    assert world.sweep(later_s=99).finalize == []
    assert world.sweep(later_s=101).finalize == [job_id]


def test_old_files_are_removed_unless_a_job_needs_them(world: World) -> None:
    job_id = world.running(batch_lines(1))
    input_id = world.job(job_id).input_file_id
    with writing(world.database) as connection:
        connection.exec_driver_sql(f"UPDATE files SET expires_at = {time.time() + 10}")
    assert world.sweep(LATER_S).files == 0, "the job still needs it"
    job = world.run_through(job_id)
    assert world.sweep(LATER_S).files == 1
    with reading(world.database) as connection:
        assert files.get_file(connection, input_id) is None
        output = files.get_file(connection, job.output_file_id or "")
    assert output is not None and Path(output.path).exists()
    retention_s = world.settings.file_retention_s
    assert world.sweep(retention_s + LATER_S).files == 1
    assert not Path(output.path).exists()


def test_a_sweep_without_redis_still_moves_jobs(world: World, redis_server: RedisServer) -> None:
    job_id = world.running(batch_lines(1), window_s=500)
    redis_server.process.kill()
    try:
        assert world.sweep(LATER_S).finalize == [job_id]
    finally:
        redis_server.restart()


def test_an_idle_sweep_writes_nothing(world: World) -> None:
    world.run_through(world.running(batch_lines(3)))
    world.sweep()
    statements: list[str] = []

    @event.listens_for(world.database, "before_cursor_execute")
    def _note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    world.sweep(LATER_S)
    assert statements, "the listener sees no statements"
    assert not [s for s in statements if s.startswith(("UPDATE", "INSERT", "DELETE", "BEGIN IMMEDIATE"))]


def test_a_lock_is_held_by_one_worker(world: World) -> None:
    with try_lock(world.redis, "x") as first:
        assert first is not None
        first.renew()
        with try_lock(world.redis, "x") as second:
            assert second is None
        with try_lock(world.redis, "y") as other:
            assert other is not None
    with try_lock(world.redis, "x") as third:
        assert third is not None


def test_concurrent_tasks_do_not_deadlock(world: World) -> None:
    """Record, cancel, claim and sweep the same rows at the same time, many times."""
    jobs = [world.running(batch_lines(60)) for _ in range(3)]
    stop = threading.Event()
    errors: list[BaseException] = []

    def work(step: object) -> None:
        try:
            while not stop.is_set():
                step()  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    def answer() -> None:
        world.engine.answer(world.engine.take(20))
        world.record()

    threads = [
        threading.Thread(target=work, args=(step,))
        for step in (world.prepare, answer, world.record, lambda: world.sweep(LATER_S))
    ]
    for thread in threads:
        thread.start()
    world.cancel(jobs[0])
    world.finalize(jobs[0])
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and not errors:
        if all(world.job(job_id).status == "finalizing" for job_id in jobs[1:]):
            break
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    for job_id in jobs:
        world.check_counts(job_id)
    with reading(world.database) as connection:
        assert job_endings.has_jobs_to_move(connection, time.time()) is False
    assert [world.job(job_id).status for job_id in jobs] == ["cancelled", "finalizing", "finalizing"]


def test_results_of_unknown_items_are_dropped(world: World) -> None:
    world.running([batch_line("a")])
    world.prepare()
    (taken,) = world.engine.take()
    with writing(world.database) as connection:
        connection.exec_driver_sql("DELETE FROM items")
    world.engine.answer([taken])
    assert world.record().changed == 0
    assert world.queue_length() == 0
