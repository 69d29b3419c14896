"""Cancel, pause, resume, retry; files at the end; lists."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bros_batch.db import api_keys, ended_items, engines, files, job_control, jobs
from bros_batch.db.connections import reading, writing
from bros_batch.db.job_leases import take_lease
from bros_batch.db.states import IllegalTransition, ItemStatus
from bros_batch.db.tables import Job
from bros_batch.jobs import finalize as finalize_module
from bros_batch.jobs.streams import withdraw_job
from bros_batch.jobs.task_run import Progress
from engine.wire.protocol import CANCEL_CHANNEL
from tests.bros_batch.world import World, batch_line, batch_lines


def step(world: World, name: str, job_id: str) -> Job:
    with writing(world.database) as connection:
        changed: Job = getattr(job_control, f"{name}_job")(connection, job_id)
        return changed


# Cancel -----------------------------------------------------------------------------------------------------------


def test_cancel_keeps_finished_lines_and_ends_the_rest_at_once(world: World) -> None:
    job_id = world.running(batch_lines(8))
    world.settings = world.settings.model_copy(update={"queue_high_water": 6})
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(taken[:2])
    world.record()
    job = step(world, "cancel", job_id)
    assert job.status == "cancelling" and job.cancelling_at is not None
    assert world.statuses(job_id) == ["succeeded"] * 2 + ["cancelled"] * 6
    world.check_counts(job_id)
    world.engine.answer(taken[2:4], "too late")
    world.engine.answer(taken[4:], error_code="batch_cancelled", choices=[])
    assert world.record().changed == 0
    assert world.finalize(job_id).progress is Progress.DONE
    job = world.check_counts(job_id)
    assert (job.status, job.succeeded, job.cancelled) == ("cancelled", 2, 6)
    assert [line["custom_id"] for line in world.file_lines(job.output_file_id)] == ["doc-0", "doc-1"]
    errors = world.file_lines(job.error_file_id)
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"} and len(errors) == 6
    assert step(world, "cancel", job_id).status == "cancelled", "cancelling twice is no error"


def test_cancel_withdraws_deliveries_and_tells_engines(world: World) -> None:
    cancelled = world.running(batch_lines(5))
    other = world.running(batch_lines(3))
    world.prepare()
    world.engine.take(2)
    with world.redis.pubsub() as pubsub:
        pubsub.subscribe(CANCEL_CHANNEL)
        assert pubsub.get_message(timeout=5)["type"] == "subscribe"
        step(world, "cancel", cancelled)
        assert withdraw_job(world.worker, cancelled, "sim") == 5
        messages = [pubsub.get_message(timeout=5) for _ in range(2)]
    assert [message["data"] for message in messages] == [cancelled.encode()] * 2, (
        "before, and when none can be read"
    )
    assert world.queue_length() == 3
    assert [each.item.job_id for each in world.engine.take()] == [other] * 3


def test_a_large_cancel_is_finished_by_finalize(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_control, "CANCEL_AT_ONCE_ITEMS", 3)
    monkeypatch.setattr(finalize_module, "END_ITEMS", 4)
    job_id = world.running(batch_lines(20))
    step(world, "cancel", job_id)
    assert world.check_counts(job_id).cancelled == 3
    assert world.prepare().queued == 0
    assert world.finalize(job_id, until_s=0.0).progress is Progress.MORE
    assert world.check_counts(job_id).cancelled == 7
    assert world.finalize(job_id).progress is Progress.DONE
    assert world.check_counts(job_id).cancelled == 20


@pytest.mark.parametrize("ended", ["completed", "failed"])
def test_an_ended_job_can_not_be_cancelled(world: World, ended: str) -> None:
    if ended == "completed":
        job_id = world.running(batch_lines(1))
        world.run_through(job_id)
    else:
        job_id = world.submit(b"")
        world.ingest(job_id)
    with pytest.raises(IllegalTransition, match=f"{ended} and cannot become cancelling"):
        step(world, "cancel", job_id)


def test_an_unknown_job_is_a_lookup_error(world: World) -> None:
    with pytest.raises(LookupError, match="batch_nope"):
        step(world, "cancel", "batch_nope")


# Pause, resume ----------------------------------------------------------------------------------------------------


def test_a_paused_job_prepares_nothing_and_finishes_what_is_queued(world: World) -> None:
    job_id = world.running(batch_lines(4))
    world.settings = world.settings.model_copy(update={"queue_high_water": 2})
    world.prepare()
    assert step(world, "pause", job_id).status == "paused"
    assert step(world, "pause", job_id).status == "paused"
    world.engine.answer(world.engine.take())
    assert world.record().changed == 2
    assert world.prepare().queued == 0
    assert world.check_counts(job_id).status == "paused"
    assert step(world, "resume", job_id).status == "in_progress"
    assert step(world, "resume", job_id).paused_at is None
    assert world.run_through(job_id).succeeded == 4


def test_a_paused_job_whose_last_line_ends_is_done(world: World) -> None:
    job_id = world.running(batch_lines(1))
    world.prepare()
    step(world, "pause", job_id)
    world.engine.answer(world.engine.take())
    assert list(world.record().finalize) == [job_id]


def test_only_running_jobs_pause_and_only_paused_ones_resume(world: World) -> None:
    job_id = world.submit(batch_lines(1))
    for name in ("pause", "resume", "retry"):
        with pytest.raises(IllegalTransition):
            step(world, name, job_id)
    world.ingest(job_id)
    world.run_through(job_id)
    for name in ("pause", "resume"):
        with pytest.raises(IllegalTransition):
            step(world, name, job_id)


# Retry ------------------------------------------------------------------------------------------------------------


def test_retry_runs_what_has_no_result_again(world: World) -> None:
    bad = b"nonsense"
    lines = [json.dumps(line).encode() for line in batch_lines(4)]
    job_id = world.running(b"\n".join([*lines, bad]))
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(taken[:2], "the first time")
    world.engine.answer(taken[2:], choices=[], error_code="engine_lost", error_message="gone")
    world.record()
    world.finalize(job_id)
    first = world.check_counts(job_id)
    assert (first.status, first.succeeded, first.failed) == ("completed", 2, 3)

    job = step(world, "retry", job_id)
    assert (job.status, job.succeeded, job.failed, job.total) == ("in_progress", 2, 1, 5)
    assert (job.output_file_id, job.completed_at) == (None, None)
    world.check_counts(job_id)
    assert world.prepare().queued == 2
    world.engine.answer(taken[2:], "late, of the first time")
    assert world.record().changed == 0
    job = world.run_through(job_id)
    world.check_counts(job_id)
    assert (job.status, job.succeeded, job.failed) == ("completed", 4, 1)
    assert job.output_file_id != first.output_file_id
    output = world.file_lines(job.output_file_id)
    assert [line["custom_id"] for line in output] == [f"doc-{number}" for number in range(4)]
    assert "the first time" in json.dumps(output[0]) and "the first time" not in json.dumps(output[2])
    with pytest.raises(IllegalTransition, match="nothing of the job can be run again"):
        step(world, "retry", job_id)


def test_a_cancelled_job_can_be_taken_up_again(world: World) -> None:
    job_id = world.running(batch_lines(3))
    step(world, "cancel", job_id)
    world.finalize(job_id)
    assert step(world, "retry", job_id).cancelled == 0
    job = world.run_through(job_id)
    assert (job.status, job.succeeded, job.cancelled_at, job.error_file_id) == ("completed", 3, None, None)
    world.check_counts(job_id)


def test_an_expired_job_gets_new_time(world: World) -> None:
    job_id = world.running(batch_lines(2), window_s=-1.0)
    world.sweep()
    world.finalize(job_id)
    assert world.job(job_id).status == "expired"
    step(world, "retry", job_id)
    world.sweep(later_s=1000)
    assert world.run_through(job_id).status == "completed"


# Finalize ---------------------------------------------------------------------------------------------------------


def ended(world: World, count: int) -> str:
    """A job all of whose lines have ended, every third without a result."""
    job_id = world.running(batch_lines(count))
    world.prepare()
    taken = world.engine.take()
    world.engine.answer([each for n, each in enumerate(taken) if n % 3])
    world.engine.answer(taken[::3], choices=[], error_code="engine_lost", error_message="gone")
    world.record()
    return job_id


def parts(world: World) -> list[Path]:
    return list(world.settings.files_dir.glob(".*.part"))


def test_finalize_dies_anywhere_and_the_next_one_makes_the_same_files(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settings = world.settings.model_copy(update={"lease_s": 0.0001})
    monkeypatch.setattr(finalize_module, "PAGE_ROWS", 7)
    job_id = ended(world, 40)

    class Death(BaseException):
        pass

    # Where it dies, and in how many calls of that.
    points: list[tuple[Any, str, int]] = [
        (os, "fsync", 3),
        (Path, "replace", 2),
        (ended_items, "ended_page", 6),
        (files, "create_file", 2),
        (finalize_module, "_sync_directory", 1),
    ]
    for owner, name, times in points:
        for after in range(times):
            real, calls = getattr(owner, name), [0]

            def mortal(
                *args: Any, real: Any = real, calls: Any = calls, after: int = after, **kw: Any
            ) -> Any:
                calls[0] += 1
                if calls[0] > after:
                    raise Death
                return real(*args, **kw)

            with monkeypatch.context() as patch:
                patch.setattr(owner, name, mortal)
                with pytest.raises(Death):
                    world.finalize(job_id)
            assert world.job(job_id).status == "finalizing", "no status without its files"
    assert world.finalize(job_id).progress is Progress.DONE
    job = world.check_counts(job_id)
    output, errors = world.file_lines(job.output_file_id), world.file_lines(job.error_file_id)
    assert [line["custom_id"] for line in output] == [f"doc-{n}" for n in range(40) if n % 3]
    assert [line["custom_id"] for line in errors] == [f"doc-{n}" for n in range(40) if n % 3 == 0]
    assert parts(world) == []
    assert {path.name for path in world.settings.files_dir.iterdir()} == {
        job.input_file_id,
        job.output_file_id,
        job.error_file_id,
    }, "nothing is left over"


def test_finalize_in_many_turns_goes_on_where_it_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finalize_module, "PAGE_ROWS", 7)
    job_id = ended(world, 40)
    clock = iter(range(10_000))
    ticking = SimpleNamespace(monotonic=lambda: next(clock), time=time.time)
    monkeypatch.setattr(finalize_module, "time", ticking)
    turns = 0
    reached = 0
    while world.finalize(job_id, until_s=next(clock) + 3.0).progress is Progress.MORE:
        turns += 1
        assert world.job(job_id).written_line >= reached
        reached = world.job(job_id).written_line
        with parts(world)[0].open("ab") as file:  # what was written after the last commit is cut off
            file.write(b"half a li")
    assert turns >= 2
    job = world.job(job_id)
    assert len(world.file_lines(job.output_file_id)) == 26
    assert len(world.file_lines(job.error_file_id)) == 14


def test_a_finalizer_that_overslept_can_not_write_into_the_next_ones_files(world: World) -> None:
    job_id = ended(world, 3)
    world.settings = world.settings.model_copy(update={"lease_s": 0.0001})
    with writing(world.database) as connection:
        leased = take_lease(connection, job_id, finalize_module.STATUSES, 0.0001, 0.0)
    assert leased is not None
    asleep = finalize_module._Finalizer(world.worker, *leased)
    with asleep.files():
        assert world.finalize(job_id).progress is Progress.NOT_OURS
    assert world.finalize(job_id).progress is Progress.DONE


def test_a_job_that_is_not_over_is_not_finalized(world: World) -> None:
    job_id = world.running(batch_lines(1))
    assert world.finalize(job_id).progress is Progress.NOT_OURS
    assert world.finalize("batch_nope").progress is Progress.NOT_OURS


# Lists ------------------------------------------------------------------------------------------------------------


def test_lists_are_newest_first_and_go_on_after_a_row(world: World) -> None:
    ids = [world.submit([batch_line("a")], name=f"job {n % 2} 100%", now_s=1000.0 + n // 2) for n in range(7)]
    with writing(world.database) as connection:
        job_control.cancel_job(connection, ids[0])
    with reading(world.database) as connection:
        listed = jobs.list_jobs(connection, limit=100)
        assert [job.created_at for job in listed] == sorted((j.created_at for j in listed), reverse=True)
        pages = []
        after = None
        while page := jobs.list_jobs(connection, after=after, limit=2):
            pages += page
            after = page[-1].id
        assert pages == listed
        assert len(jobs.list_jobs(connection, search="JOB 1 100%")) == 3
        assert jobs.list_jobs(connection, search="100_") == []
        assert [job.id for job in jobs.list_jobs(connection, search=ids[3][8:20])] == [ids[3]]
        assert [job.id for job in jobs.list_jobs(connection, status="cancelling")] == [ids[0]]
        assert len(jobs.list_jobs(connection, status="validating")) == 6
        uploaded = files.list_files(connection, limit=100)
        assert len(uploaded) == 7
        assert files.list_files(connection, after=uploaded[4].id) == uploaded[5:]
        assert files.list_files(connection, purpose="batch_output") == []


def test_ended_items_are_read_in_pages(world: World) -> None:
    job_id = world.running(batch_lines(10))
    step(world, "cancel", job_id)
    lines: list[int] = []
    with reading(world.database) as connection:
        while page := ended_items.ended_page(connection, job_id, lines[-1] if lines else 3, 4):
            assert len(page) <= 4
            lines += [item.line_no for item in page]
        assert lines == list(range(4, 11))
        some = ended_items.ended_page(connection, job_id, 3, 5, ItemStatus.CANCELLED)
        assert [item.line_no for item in some] == lines[:5]


def test_keys_are_found_by_their_secret_until_revoked(world: World) -> None:
    with writing(world.database) as connection:
        key, secret = api_keys.create_api_key(connection, "ci")
        assert api_keys.find_api_key(connection, secret) == key
        assert api_keys.find_api_key(connection, secret + "x") is None
        assert api_keys.revoke_api_key(connection, key.id)
        assert api_keys.find_api_key(connection, secret) is None
        assert not api_keys.revoke_api_key(connection, key.id)
        assert [each.name for each in api_keys.list_api_keys(connection)] == ["ci"]
        dump = str(connection.exec_driver_sql("SELECT * FROM api_keys").all())
    assert secret not in dump


def test_engines_are_kept_by_their_last_heartbeat(world: World) -> None:
    beat = {"engine_id": "e", "host": "h", "device": "cpu", "model": "sim", "stats": {"tau": 0.5}}
    with writing(world.database) as connection:
        engines.upsert_engines(connection, [beat], 100.0)
        engines.upsert_engines(connection, [{**beat, "host": "h2"}], 200.0)
        (engine,) = engines.list_engines(connection)
        assert (engine.id, engine.host, engine.heartbeat_at) == ("e", "h2", 200.0)
        assert engine.stats["stats"] == {"tau": 0.5}
        assert engines.list_engines(connection, seen_after=201.0) == []
