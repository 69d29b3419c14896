"""Cancel, pause and resume."""

from __future__ import annotations

import pytest

from bros_batch.db import job_control
from bros_batch.db.connections import writing
from bros_batch.db.states import IllegalTransition
from bros_batch.db.table_rows import Job
from bros_batch.jobs import finalize as finalize_module
from bros_batch.jobs.task_run import Progress
from bros_batch.jobs.withdraw import withdraw_job
from engine.wire.redis_keys import ENGINE_GROUP
from tests.bros_batch.world import World, batch_lines


def step(world: World, name: str, job_id: str) -> Job:
    with writing(world.database) as connection:
        changed: Job = getattr(job_control, f"{name}_job")(connection, job_id)
        return changed


# Cancel -----------------------------------------------------------------------------------------------------------


def test_cancel_keeps_finished_items_and_ends_the_rest_at_once(world: World) -> None:
    job_id = world.running(batch_lines(8))
    world.settings = world.settings.model_copy(update={"queue_max_items": 6})
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(taken[:2])
    world.record()
    job = step(world, "cancel", job_id)
    assert job.status == "cancelling" and job.cancelling_at is not None
    assert world.statuses(job_id) == ["succeeded"] * 2 + ["cancelled"] * 6
    world.check_counts(job_id)
    world.engine.answer(taken[2:4], "too late")
    world.engine.answer(taken[4:], error_code="invalid_request", choices=[])
    assert world.record().changed == 0
    assert world.finalize(job_id).progress is Progress.DONE
    job = world.check_counts(job_id)
    assert (job.status, job.succeeded, job.cancelled) == ("cancelled", 2, 6)
    assert [line["custom_id"] for line in world.file_lines(job.output_file_id)] == ["doc-0", "doc-1"]
    errors = world.file_lines(job.error_file_id)
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"} and len(errors) == 6
    assert step(world, "cancel", job_id).status == "cancelled", "cancelling twice is not an error"


def test_cancel_removes_the_items_of_the_job_from_the_stream(world: World) -> None:
    cancelled = world.running(batch_lines(5))
    other = world.running(batch_lines(3))
    world.prepare()
    world.engine.take(2)
    step(world, "cancel", cancelled)
    assert withdraw_job(world.worker, cancelled, "sim") == 5
    assert world.redis.xpending(world.engine.key, ENGINE_GROUP)["pending"] == 0, "engines hold none of them"
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
def test_an_ended_job_cannot_be_cancelled(world: World, ended: str) -> None:
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


def test_a_paused_job_prepares_nothing_and_finishes_queued_items(world: World) -> None:
    job_id = world.running(batch_lines(4))
    world.settings = world.settings.model_copy(update={"queue_max_items": 2})
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


def test_a_paused_job_is_finalized_when_its_last_item_ends(world: World) -> None:
    job_id = world.running(batch_lines(1))
    world.prepare()
    step(world, "pause", job_id)
    world.engine.answer(world.engine.take())
    assert list(world.record().finalize) == [job_id]


def test_only_running_jobs_pause_and_only_paused_ones_resume(world: World) -> None:
    job_id = world.submit(batch_lines(1))
    for name in ("pause", "resume"):
        with pytest.raises(IllegalTransition):
            step(world, name, job_id)
    world.ingest(job_id)
    world.run_through(job_id)
    for name in ("pause", "resume"):
        with pytest.raises(IllegalTransition):
            step(world, name, job_id)
