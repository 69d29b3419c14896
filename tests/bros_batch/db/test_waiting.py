"""What a job that does not move is said to wait for."""

from __future__ import annotations

import time
from typing import Any

from bros_batch.db import engines, job_control
from bros_batch.db.connections import reading, writing
from bros_batch.db.waiting import waiting_reasons
from bros_batch.web.api.batch_object import batch_object
from cli.jobs.status import summary
from tests.bros_batch.world import World, batch_lines


def reasons(world: World, *job_ids: str) -> list[str | None]:
    with reading(world.database) as connection:
        found = waiting_reasons(connection, [world.job(job_id) for job_id in job_ids], time.time())
    return [found.get(job_id) for job_id in job_ids]


def engine_runs(world: World, silent_s: float = 0.0, **about: Any) -> None:
    heartbeat = {"engine_id": "a", "model": "sim", **about}
    with writing(world.database) as connection:
        engines.upsert_engines(connection, [heartbeat], time.time() - silent_s)


def test_a_job_waits_behind_jobs_that_are_more_urgent(world: World) -> None:
    engine_runs(world)
    world.settings = world.settings.model_copy(update={"queue_max_items": 5})
    urgent = world.running(batch_lines(1350), priority=3)
    first, second = world.running(batch_lines(1)), world.running(batch_lines(2))
    assert reasons(world, urgent) == ["Its first lines are being prepared."]
    world.prepare()
    assert reasons(world, urgent, first, second) == [
        None,
        "Waiting behind 1 job of higher priority (1,350 lines left).",
        "Waiting behind 2 jobs (1,351 lines left).",
    ]
    world.engine.answer(world.engine.take())
    world.record()
    assert reasons(world, first) == ["Waiting behind 1 job of higher priority (1,345 lines left)."]
    with writing(world.database) as connection:
        job_control.pause_job(connection, urgent)
    assert reasons(world, urgent, first, second) == [
        None,
        "Its first lines are being prepared.",
        "Waiting behind 1 job (1 line left).",
    ]


def test_without_an_engine_that_works_all_jobs_wait_for_one(world: World) -> None:
    job_id = world.running(batch_lines(3))
    world.prepare()
    nobody = ["No engine is running for sim."]
    assert reasons(world, job_id) == nobody
    engine_runs(world, model="another")
    assert reasons(world, job_id) == nobody
    engine_runs(world, silent_s=3600)
    assert reasons(world, job_id) == nobody
    engine_runs(world, is_stuck=True)
    assert reasons(world, job_id) == nobody
    engine_runs(world)
    assert reasons(world, job_id) == [None]


def test_the_batch_object_and_the_summary_say_it(world: World) -> None:
    job_id = world.running(batch_lines(3))
    (reason,) = reasons(world, job_id)
    batch = batch_object(world.job(job_id), reason)
    assert batch["waiting_reason"] == "No engine is running for sim."
    assert "waiting: No engine is running for sim." in summary(batch)
    assert batch_object(world.job(job_id))["waiting_reason"] is None
    assert "waiting" not in summary(batch_object(world.job(job_id)))
