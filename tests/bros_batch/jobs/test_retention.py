"""How long the results of a job are kept."""

from __future__ import annotations

import time

import pytest

from bros_batch.db import engines, files
from bros_batch.db.connections import reading, writing
from bros_batch.db.table_rows import File
from bros_batch.jobs import tasks
from tests.bros_batch.world import World, batch_lines

DAY_S = 24 * 3600.0


def output_of(world: World, job_id: str) -> File | None:
    file_id = world.job(job_id).output_file_id
    assert file_id is not None
    with reading(world.database) as connection:
        return files.get_file(connection, file_id)


@pytest.mark.parametrize("options", [{"file_retention_s": 0}])
def test_without_retention_results_are_kept(world: World) -> None:
    job_id = world.running(batch_lines(2))
    world.run_through(job_id)
    world.sweep(later_s=1000 * DAY_S)
    file = output_of(world, job_id)
    assert file is not None
    assert file.expires_at is None
    assert len(world.file_lines(file.id)) == 2


@pytest.mark.parametrize("options", [{"file_retention_s": 5 * DAY_S}, {"file_retention_s": 0}])
def test_output_is_kept_as_long_as_its_owner_asked(world: World) -> None:
    job_id = world.running(batch_lines(2), output_expires_after_s=3600.0)
    world.run_through(job_id)
    file = output_of(world, job_id)
    assert file is not None
    assert file.expires_at == pytest.approx(time.time() + 3600, abs=60)
    world.sweep(later_s=3500)
    assert output_of(world, job_id) is not None
    world.sweep(later_s=3700)
    assert output_of(world, job_id) is None


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), 1e300])
def test_a_retention_that_is_no_time_is_rejected(value: float) -> None:
    from bros_batch.settings import Settings, SettingsError

    with pytest.raises(SettingsError, match="BROS_FILE_RETENTION_S"):
        Settings(file_retention_s=value)


def test_an_engine_that_has_been_silent_for_a_day_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "get_worker", lambda: world.worker)
    now_s = time.time()
    with writing(world.database) as connection:
        for name, seen_at in (("gone", now_s - 2 * DAY_S), ("away", now_s - 60)):
            engines.upsert_engines(connection, [{"engine_id": name, "model": "sim"}], seen_at)
    world.engine.announce()
    tasks.pump()
    with reading(world.database) as connection:
        names = [engine.id for engine in engines.list_engines(connection, seen_after=0.0)]
    assert "gone" not in names and "away" in names and len(names) == 2
