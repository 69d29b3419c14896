"""Rows of a job that are computed again: the failed ones, or some by number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bros_batch.db import files
from bros_batch.db.connections import reading, writing
from bros_batch.db.rerun import CannotRerun, rerun_rows
from bros_batch.db.table_rows import Job
from tests.bros_batch.world import World, batch_lines


def rerun(world: World, job_id: str, rows: list[int] | None = None) -> Job:
    with writing(world.database) as connection:
        return rerun_rows(connection, job_id, rows)[0]


def answers_of(world: World, job: Job) -> list[str]:
    return [
        line["response"]["body"]["choices"][0]["message"]["content"]
        for line in world.file_lines(job.output_file_id)
    ]


def partly_failed(world: World) -> str:
    """An ended job of five rows: two have results, two failed, and the last could not be read."""
    lines = [json.dumps(line).encode() for line in batch_lines(4)]
    job_id = world.running(b"\n".join([*lines, b"nonsense"]))
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(taken[:2], "the first time")
    world.engine.answer(taken[2:], choices=[], error_code="engine_lost", error_message="gone")
    world.record()
    world.finalize(job_id)
    return job_id


def test_failed_rows_run_again_and_the_files_are_written_anew(world: World) -> None:
    job_id = partly_failed(world)
    first = world.check_counts(job_id)
    assert (first.status, first.succeeded, first.failed) == ("completed", 2, 3)
    with writing(world.database) as connection:
        job, old = rerun_rows(connection, job_id)
    assert (job.status, job.succeeded, job.failed, job.total) == ("in_progress", 2, 1, 5)
    assert (job.output_file_id, job.completed_at) == (None, None)
    assert [file.id for file in old] == [first.output_file_id, first.error_file_id]
    with reading(world.database) as connection:
        assert files.get_file(connection, old[0].id) is None
    world.check_counts(job_id)
    assert world.prepare().queued == 2
    world.engine.answer(world.engine.take(), "again")
    job = world.run_through(job_id)
    world.check_counts(job_id)
    assert (job.status, job.succeeded, job.failed) == ("completed", 4, 1)
    assert job.output_file_id not in (None, first.output_file_id)
    assert answers_of(world, job) == ["the first time"] * 2 + ["again"] * 2
    with pytest.raises(CannotRerun, match="could not be read"):
        rerun(world, job_id)


def test_rows_by_number_get_new_results_and_no_others(world: World) -> None:
    job_id = world.running(batch_lines(6))
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(taken, "old")
    world.record()
    world.finalize(job_id)
    before = world.check_counts(job_id)
    job = rerun(world, job_id, [5, 2, 3, 2])
    assert (job.status, job.succeeded) == ("in_progress", 3)
    assert 0 < job.output_tokens < before.output_tokens
    assert world.check_counts(job_id).cached_tokens <= job.prompt_tokens
    assert world.statuses(job_id) == ["succeeded", "pending", "pending", "succeeded", "pending", "succeeded"]
    world.engine.answer(taken, "late, of the first time")
    assert world.record().changed == 0, "a result of the run before"
    world.prepare()
    world.engine.answer(world.engine.take(), "new")
    job = world.run_through(job_id)
    assert answers_of(world, job) == ["old", "new", "new", "old", "new", "old"]
    assert world.check_counts(job_id).output_tokens == before.output_tokens


def test_rows_of_a_running_job_run_again(world: World) -> None:
    job_id = world.running(batch_lines(4))
    world.prepare()
    first, *rest = world.engine.take()
    world.engine.answer([first], "old")
    world.record()
    assert rerun(world, job_id, [1, 2]).status == "in_progress"
    world.check_counts(job_id)
    with pytest.raises(CannotRerun, match="not finished"):
        rerun(world, job_id, [2])
    world.engine.answer(rest, "new")
    job = world.run_through(job_id)
    assert answers_of(world, job) == ["An answer.", "new", "new", "new"]
    world.check_counts(job_id)


def test_rows_that_cannot_run_are_named_and_nothing_changes(world: World) -> None:
    job_id = partly_failed(world)
    before = world.check_counts(job_id)
    for rows, message in (
        ([1, 6], "no row 6"),
        ([1, 5], "Row 5 could not be read.*: Line 5: this is not valid"),
    ):
        with pytest.raises(CannotRerun, match=message) as caught, writing(world.database) as connection:
            rerun_rows(connection, job_id, rows)
        assert not caught.value.is_conflict
    assert world.check_counts(job_id) == before
    fresh = world.submit(batch_lines(1))
    with pytest.raises(CannotRerun, match="still being read"):
        rerun(world, fresh)
    with pytest.raises(LookupError):
        rerun(world, "batch_0")


def test_rows_of_cancelled_and_expired_jobs_run_in_a_new_window(world: World) -> None:
    cancelled = world.running(batch_lines(3))
    world.cancel(cancelled)
    with pytest.raises(CannotRerun, match="cancelling"):
        rerun(world, cancelled)
    world.finalize(cancelled)
    expired = world.running(batch_lines(2), window_s=-1.0)
    world.sweep()
    world.finalize(expired)
    assert world.job(expired).status == "expired"
    for job_id in (cancelled, expired):
        job = rerun(world, job_id)
        assert job.cancelled == job.expired == 0
    world.sweep(later_s=1000)
    for job_id in (cancelled, expired):
        job = world.run_through(job_id)
        assert (job.status, job.cancelled_at, job.error_file_id) == ("completed", None, None)
        world.check_counts(job_id)


def test_a_finalizer_that_died_before_a_rerun_leaves_nothing_in_the_new_files(world: World) -> None:
    job_id = partly_failed(world)
    part = Path(world.settings.files_dir) / f".{job_id}.output.part"
    part.write_bytes(b"left by a run that was killed\n" * 100)
    rerun(world, job_id, [1])
    world.prepare()
    world.engine.answer(world.engine.take(), "again")
    world.record()
    world.finalize(job_id)
    assert answers_of(world, world.job(job_id)) == ["again", "the first time"]
