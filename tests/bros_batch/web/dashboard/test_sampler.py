"""The history of pace is kept by the server, and a new web process continues with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, update

from bros_batch.db import jobs, pace, tables
from bros_batch.db.connections import reading, writing
from bros_batch.web.app_state import AppState
from bros_batch.web.dashboard.history import EngineHistory
from bros_batch.web.dashboard.sampler import Sampler
from bros_batch.web.engine_link import EngineLink
from tests.bros_batch.web.serving import web_settings


async def test_minutes_are_stored_and_loaded(
    database: Engine, engine: Any, tmp_path: Path, text_model: Path
) -> None:
    settings = web_settings(tmp_path, text_model, database_url=database.url.render_as_string(False))
    with writing(database) as connection:
        job = jobs.create_job(connection, input_file_id="f", endpoint="/v1/completions", model="tiny")
        values = {"status": "in_progress", "total": 9, "succeeded": 4, "output_tokens": 40}
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == job.id).values(values))
    async with EngineLink(engine.url, None) as link:
        await link.client()
        state = AppState(settings, database, link, 0)

        async def sampled(*seconds: float) -> EngineHistory:
            history = EngineHistory()
            times = iter(seconds)
            sampler = Sampler(state, history, lambda: next(times))
            for _ in seconds[1:]:
                await sampler.look()
            return history

        first = await sampled(600.0, 600.0, 601.0, 659.0, 660.0, 662.0)
        again = await sampled(663.0, 663.0, 664.0)
        state.dispatcher.close()
        await state.threads.close(10)
    assert [point.at_s for point in first.minutes] == [600.0]
    assert list(again.minutes) == list(first.minutes)
    assert first.minutes[0].values["cap_s"] is not None
    with reading(database) as connection:
        minutes = pace.minutes_of(connection, pace.job_series(job.id), 0.0)
    assert [(each.at, each.numbers["ended"]) for each in minutes] == [(600.0, 4.0), (660.0, 4.0)]
    assert minutes[0].numbers["tokens"] == 40.0
