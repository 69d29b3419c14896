"""Finalize: complete files whatever dies, runs that continue, and jobs that are not over."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bros_batch.db import ended_items, files
from bros_batch.db.connections import writing
from bros_batch.db.job_leases import take_lease
from bros_batch.jobs import finalize as finalize_module
from bros_batch.jobs.task_run import Progress
from tests.bros_batch.world import World, batch_lines


def ended(world: World, count: int) -> str:
    """A job whose items have all ended, every third of them without a result."""
    job_id = world.running(batch_lines(count))
    world.prepare()
    taken = world.engine.take()
    world.engine.answer([each for n, each in enumerate(taken) if n % 3])
    world.engine.answer(taken[::3], choices=[], error_code="engine_lost", error_message="gone")
    world.record()
    return job_id


def parts(world: World) -> list[Path]:
    return list(world.settings.files_dir.glob(".*.part"))


def test_finalize_may_die_anywhere_and_the_next_run_writes_the_same_files(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settings = world.settings.model_copy(update={"lease_s": 0.0001})
    monkeypatch.setattr(finalize_module, "PAGE_ROWS", 7)
    job_id = ended(world, 40)

    class Death(BaseException):
        pass

    # Where the run dies, and the number of calls of each.
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
    }, "no other file is left"


def test_finalize_continues_where_the_last_run_stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finalize_module, "PAGE_ROWS", 7)
    job_id = ended(world, 40)
    clock = iter(range(10_000))
    ticking = SimpleNamespace(monotonic=lambda: next(clock), time=time.time)
    monkeypatch.setattr(finalize_module, "time", ticking)
    runs = 0
    reached = 0
    while world.finalize(job_id, until_s=next(clock) + 3.0).progress is Progress.MORE:
        runs += 1
        assert world.job(job_id).written_line >= reached
        reached = world.job(job_id).written_line
        with parts(world)[0].open("ab") as file:  # text written after the last commit is cut off
            file.write(b"half a li")
    assert runs >= 2
    job = world.job(job_id)
    assert len(world.file_lines(job.output_file_id)) == 26
    assert len(world.file_lines(job.error_file_id)) == 14


def test_a_run_that_outlived_its_lease_cannot_write_into_the_files_of_the_next(world: World) -> None:
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
