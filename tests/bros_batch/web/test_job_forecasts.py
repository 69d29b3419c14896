"""Forecasts of jobs in the database: by their own pace, and by the engine's behind the jobs ahead of them."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest
from sqlalchemy import update

from bros_batch.db import engines, tables
from bros_batch.db.connections import reading, writing
from bros_batch.db.forecast_errors import MAX_ERRORS, add_errors, read_errors
from bros_batch.forecast import MAX_ERROR, Forecast
from bros_batch.web.forecast_log import ForecastLog
from bros_batch.web.job_forecasts import NewJob, forecast_of_new, forecasts
from bros_batch.web.job_rates import JobRates
from tests.bros_batch.world import CHAT, World, batch_lines

# 100 tokens per second, none of them cached, a quarter of them output: 175 units of work.
HEARTBEAT: dict[str, Any] = {
    "engine_id": "tiny",
    "tokens_per_s": 100.0,
    "stats": {"lanes": {"be": {"prompt_tokens": 750, "cached_tokens": 0, "output_tokens": 250, "tpot": {}}}},
}


def announce(world: World) -> None:
    with writing(world.database) as connection:
        heartbeat = {**HEARTBEAT, "model": world.settings.model_name}
        engines.upsert_engines(connection, [heartbeat], time.time())


def of_jobs(
    world: World, *job_ids: str, rates: JobRates | None = None, now_s: float = 0.0
) -> dict[str, Forecast]:
    asked = [world.job(job_id) for job_id in job_ids]
    with reading(world.database) as connection:
        return forecasts(connection, rates or JobRates(), asked, now_s or time.time())


def set_counts(world: World, job_id: str, **counts: int) -> None:
    with writing(world.database) as connection:
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == job_id).values(**counts))


def test_nothing_is_said_without_an_engine_or_for_a_job_that_does_not_run(world: World) -> None:
    running, submitted = world.running(batch_lines(4)), world.submit(batch_lines(4))
    assert of_jobs(world, running, submitted) == {}
    announce(world)
    assert list(of_jobs(world, running, submitted)) == [running]


def test_a_job_waits_for_the_more_urgent_one(world: World) -> None:
    announce(world)
    alone = world.running(batch_lines(20))
    before = of_jobs(world, alone)[alone]
    urgent = world.running(batch_lines(40), priority=5)
    after = of_jobs(world, alone, urgent)
    assert after[alone].p50 == pytest.approx(before.p50 + after[urgent].p50, rel=0.1)
    assert after[urgent].p50 == pytest.approx(2 * before.p50, rel=0.1)


def test_a_job_that_runs_is_judged_by_its_own_pace(world: World) -> None:
    job_id = world.running(batch_lines(100))
    world.prepare()
    rates, job = JobRates(), world.job(job_id)
    for second in range(31):
        rates.observe(dataclasses.replace(job, succeeded=2 * second), float(second))
    set_counts(world, job_id, succeeded=60, prompt_tokens=600, output_tokens=600)
    found = of_jobs(world, job_id, rates=rates, now_s=30.0)[job_id]
    assert found.p50 == pytest.approx(20.5)
    assert found.p10 > 14
    assert found.p90 < 30


def test_a_new_job_with_the_defaults_of_an_earlier_one_has_its_lengths(world: World) -> None:
    announce(world)
    defaults = {"prompt": "{text}", "max_tokens": 50}
    new = NewJob(world.settings.model_name, CHAT, defaults, 100, 10.0, 50.0)
    with reading(world.database) as connection:
        guess, output = forecast_of_new(connection, JobRates(), new, time.time())
    assert output == 25
    earlier = world.running([{"text": "a"}] * 10, defaults=defaults)
    set_counts(world, earlier, status="completed", succeeded=10, prompt_tokens=100, output_tokens=400)
    with reading(world.database) as connection:
        known, output = forecast_of_new(connection, JobRates(), new, time.time())
    assert output == 40
    assert guess is not None
    assert known is not None
    assert known.p90 / known.p10 < guess.p90 / guess.p10


def test_the_errors_of_forecasts_widen_later_ones(world: World) -> None:
    announce(world)
    rates, log = JobRates(), ForecastLog()
    ended = world.running(batch_lines(20))
    job = world.job(ended)
    with writing(world.database) as connection:
        log.note(connection, rates, [job], time.time())
        assert not log.has_ended([job])
    cancelled = world.running(batch_lines(20))
    with writing(world.database) as connection:
        log.note(connection, rates, [job, world.job(cancelled)], time.time())
    set_counts(world, ended, status="completed", completed_at=int(time.time()) + 1_000_000)
    set_counts(world, cancelled, status="cancelled")
    other = world.running(batch_lines(20))
    before = of_jobs(world, other)[other]
    assert log.has_ended([])
    with writing(world.database) as connection:
        log.learn(connection, [])
        assert read_errors(connection) == {"new": [MAX_ERROR]}
        assert not log.has_ended([])
        add_errors(connection, {"new": [MAX_ERROR] * MAX_ERRORS, "half": [0.5]})
        kept = read_errors(connection)
    assert len(kept["new"]) == MAX_ERRORS
    assert kept["half"] == [0.5]
    assert of_jobs(world, other)[other].p90 > 2 * before.p90
