"""Forecasts of jobs in the database: by their own pace, and by the engine's behind the jobs ahead of them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import update

from bros_batch.db import engines, tables
from bros_batch.db.api_keys import KeyTerms, create_api_key
from bros_batch.db.connections import reading, writing
from bros_batch.db.forecast_errors import MAX_ERRORS, add_errors, read_errors
from bros_batch.forecast import MAX_ERROR, Forecast
from bros_batch.web.engine_load import NewJob
from bros_batch.web.engine_pace import EnginePace
from bros_batch.web.forecast_log import ForecastLog
from bros_batch.web.job_forecasts import forecast_of_new, forecasts
from tests.bros_batch.world import CHAT, World, batch_lines

# 100 tokens per second, none of them cached, a quarter of them output: 150 units of work.
HEARTBEAT: dict[str, Any] = {
    "engine_id": "tiny",
    "tokens_per_s": 100.0,
    "stats": {"lanes": {"be": {"prompt_tokens": 750, "cached_tokens": 0, "output_tokens": 250, "tpot": {}}}},
}


def announce(world: World) -> None:
    with writing(world.database) as connection:
        heartbeat = {**HEARTBEAT, "model": world.settings.model_name}
        engines.upsert_engines(connection, [heartbeat], time.time())


def engine_seen() -> EnginePace:
    """An engine that has computed 1,000 tokens of prompts and 200 of outputs per second for a while."""
    engine = EnginePace()
    for second in range(20):
        prompt, output = 1000.0 * second, 200.0 * second
        be = {"running": 60, "generated_tokens": output, "output_tokens": output}
        rt = {"generated_tokens": 0, "tpot": {"counts": [0], "sum_s": 0.0}, "slo": {"recent_ratio": 1.0}}
        engine.observe({"computed_tokens": prompt + output, "lanes": {"rt": rt, "be": be}}, float(second))
    return engine


def of_jobs(world: World, *job_ids: str, engine: EnginePace | None = None) -> dict[str, Forecast]:
    asked = [world.job(job_id) for job_id in job_ids]
    with reading(world.database) as connection:
        return forecasts(connection, engine or EnginePace(), asked, time.time())


def set_counts(world: World, job_id: str, **counts: int | str) -> None:
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


def test_owners_share_the_engine_by_weight(world: World) -> None:
    announce(world)
    alone = world.running(batch_lines(20), owner="ann")
    before = of_jobs(world, alone)[alone]
    large = world.running(batch_lines(400), owner="bob", priority=5)
    after = of_jobs(world, alone, large)
    assert after[alone].p50 == pytest.approx(2 * before.p50, rel=0.1)
    # What the other owner has is not waited for but shared.
    assert after[large].p50 == pytest.approx(21 * before.p50, rel=0.1)
    with writing(world.database) as connection:
        create_api_key(connection, "k", terms=KeyTerms(owner="bob", weight=3.0))
    assert of_jobs(world, alone)[alone].p50 == pytest.approx(4 * before.p50, rel=0.1)
    second = world.running(batch_lines(40), owner="ann")
    assert of_jobs(world, second)[second].p50 == pytest.approx(12 * before.p50, rel=0.1)


def test_rows_in_flight_say_that_the_outputs_are_longer_than_those_that_ended(world: World) -> None:
    announce(world)
    job_id = world.running(batch_lines(1000))
    engine = engine_seen()
    first = of_jobs(world, job_id, engine=engine)[job_id]
    world.prepare()
    items = world.items(job_id)
    with writing(world.database) as connection:
        for item in items[:10]:
            ended = {"status": "succeeded", "output_tokens": 5, "prompt_tokens": 10}
            connection.execute(update(tables.items).where(tables.items.c.id == item.id).values(**ended))
    set_counts(world, job_id, succeeded=10, prompt_tokens=100, output_tokens=50)
    short = of_jobs(world, job_id, engine=engine)[job_id]
    engine.running, engine.unfinished_tokens = 60.0, 60.0 * 30
    long = of_jobs(world, job_id, engine=engine)[job_id]
    assert short.p50 < first.p50
    assert long.p50 > 3 * short.p50


def test_decisions_and_embeddings_have_no_outputs(world: World) -> None:
    announce(world)
    for endpoint in ("/v1/decisions", "/v1/systemone", "/v1/embeddings"):
        new = NewJob(world.settings.model_name, endpoint, {}, 100, 10.0, 0.0)
        with reading(world.database) as connection:
            seconds, output = forecast_of_new(connection, EnginePace(), new, time.time())
        assert output == 0
        assert seconds is not None
        assert seconds.p50 == pytest.approx(100 * 10 / 150 + 0.7, rel=0.05)
    asked = world.running(batch_lines(10))
    answered = of_jobs(world, asked)[asked]
    set_counts(world, asked, endpoint="/v1/decisions")
    assert of_jobs(world, asked)[asked].p50 < answered.p50 / 2


def test_a_new_job_with_the_defaults_of_an_earlier_one_has_its_lengths(world: World) -> None:
    announce(world)
    defaults = {"prompt": "{text}", "max_tokens": 50}
    new = NewJob(world.settings.model_name, CHAT, defaults, 100, 10.0, 50.0)
    with reading(world.database) as connection:
        guess, output = forecast_of_new(connection, EnginePace(), new, time.time())
    assert output == 25
    earlier = world.running([{"text": "a"}] * 10, defaults=defaults)
    set_counts(world, earlier, status="completed", succeeded=10, prompt_tokens=100, output_tokens=400)
    with reading(world.database) as connection:
        known, output = forecast_of_new(connection, EnginePace(), new, time.time())
    assert output == pytest.approx(40, rel=0.02)
    assert guess is not None
    assert known is not None
    assert known.p90 / known.p10 < guess.p90 / guess.p10


def test_the_errors_of_forecasts_widen_later_ones(world: World) -> None:
    announce(world)
    engine, log = EnginePace(), ForecastLog()
    ended = world.running(batch_lines(20))
    job = world.job(ended)
    with writing(world.database) as connection:
        log.note(connection, engine, [job], time.time())
        assert not log.has_ended([job])
    cancelled = world.running(batch_lines(20))
    with writing(world.database) as connection:
        log.note(connection, engine, [job, world.job(cancelled)], time.time())
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
