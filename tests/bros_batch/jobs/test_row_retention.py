"""The rows of ended jobs go by age, and the oldest first when there is no room for all."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import update

from bros_batch.db import rerun, tables
from bros_batch.db.connections import writing
from bros_batch.db.rerun import CannotRerun
from bros_batch.jobs import row_retention
from tests.bros_batch.world import World, batch_lines

DAY_S = 24 * 3600.0


def ended(world: World, count: int = 3) -> str:
    job_id = world.running(batch_lines(count))
    assert world.run_through(job_id).status == "completed"
    return job_id


@pytest.mark.parametrize("options", [{"row_retention_s": 5 * DAY_S}])
def test_rows_are_kept_until_their_job_ended_long_ago(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_retention, "AT_ONCE_ROWS", 2)
    old, running = ended(world), world.running(batch_lines(2))
    world.sweep(later_s=4.9 * DAY_S)
    assert len(world.items(old)) == 3 and world.job(old).rows_removed_at is None
    with writing(world.database) as connection:  # otherwise it would expire
        later = {"expires_at": time.time() + 100 * DAY_S}
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == running).values(later))
    world.sweep(later_s=5.1 * DAY_S)
    job = world.job(old)
    assert world.items(old) == [] and job.rows_removed_at is not None
    assert (job.status, job.succeeded, job.total) == ("completed", 3, 3), "its counts stay"
    assert len(world.items(running)) == 2
    for rows in (None, [1]):
        with pytest.raises(CannotRerun, match="removed"), writing(world.database) as connection:
            rerun.rerun_rows(connection, old, rows)


@pytest.mark.parametrize("options", [{"row_retention_s": 5 * DAY_S}])
def test_a_removal_that_was_interrupted_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = ended(world, 5)
    monkeypatch.setattr(row_retention, "AT_ONCE_ROWS", 2)
    monkeypatch.setattr(row_retention, "BUDGET_S", 0.0)
    for left in (3, 1, 0):
        world.sweep(later_s=6 * DAY_S)
        assert len(world.items(job_id)) == left
        assert world.job(job_id).rows_removed_at is not None, "nobody reads a part of its rows"


@pytest.mark.parametrize("options", [{"row_retention_s": 0, "file_retention_s": 0}])
def test_the_oldest_jobs_make_room(world: World) -> None:
    first, second, third = (ended(world) for _ in range(3))
    paths = [path for path in world.settings.files_dir.iterdir() if path.name.startswith("file-")]
    assert len(paths) == 6, "an input and an output each"
    world.sweep(later_s=1000 * DAY_S)
    assert len(world.items(first)) == 3, "without a limit, rows stay"
    job = world.job(first)
    size = job.ingest_offset + job.written_output_bytes
    total = 6 * size  # rows and files of three jobs
    world.settings = world.settings.model_copy(update={"max_stored_bytes": total - 2 * size - 1})
    world.sweep()
    assert [len(world.items(job_id)) for job_id in (first, second, third)] == [0, 0, 3]
    assert len([path for path in paths if path.exists()]) == 2
    world.sweep()
    assert len(world.items(third)) == 3
