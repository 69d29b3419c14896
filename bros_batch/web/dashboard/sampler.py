"""The task that looks at the engine and at running jobs each second, whether or not a page is open."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from sqlalchemy import Connection

from bros_batch.db import pace
from bros_batch.web.app_state import AppState
from bros_batch.web.dashboard.history import EngineHistory, Point
from bros_batch.web.errors import ApiError
from bros_batch.web.forecast_log import ForecastLog
from engine.wire.engine_errors import EngineGone

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
# Minutes are stored a little after they end, so that what ended in them has been recorded.
LATE_S = 2.0


class Sampler:
    """Fills the history of pace, and stores each minute of it."""

    def __init__(
        self, state: AppState, history: EngineHistory, clock: Callable[[], float] = time.time
    ) -> None:
        self._state = state
        self._history = history
        self._forecasts = ForecastLog()
        self._clock = clock
        self._engine_id: str | None = None
        self._minute = int((clock() - LATE_S) // pace.MINUTE_S)

    async def run(self) -> None:
        """Sample until cancelled. What cannot be read or stored now is missing in the history."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.look()
            except (EngineGone, ApiError):
                continue
            except Exception:
                logger.exception("the history of pace misses a point")

    async def look(self) -> None:
        """Take one sample. Raises EngineGone, and ApiError if the database is not available."""
        now_s, log = self._clock(), self._forecasts
        minute = int((now_s - LATE_S) // pace.MINUTE_S)
        if minute != self._minute:
            self._minute = minute
            await self._state.write(lambda connection: _store_jobs(connection, now_s - LATE_S))
        running = await self._state.read(pace.running_jobs)
        for job in running:
            self._state.rates.observe(job, now_s)
        await self._state.read(
            lambda connection: log.note(connection, self._state.rates.engine, running, now_s)
        )
        if log.has_ended(running):
            await self._state.write(lambda connection: log.learn(connection, running))
        client = self._state.engine.connected
        if client is None:
            return
        engine_id = client.welcome.engine_id
        if engine_id != self._engine_id:
            self._history.load(
                await self._state.read(lambda connection: _stored(connection, engine_id, now_s))
            )
            self._engine_id = engine_id
        stats = await client.stats()
        self._state.rates.engine.observe(stats, now_s)
        ended = self._history.observe(now_s, stats)
        if ended is not None:
            series = pace.engine_series(engine_id)
            await self._state.write(
                lambda connection: pace.put_minute(connection, series, ended.at_s, ended.values)
            )


def _stored(connection: Connection, engine_id: str, now_s: float) -> list[Point]:
    minutes = pace.minutes_of(connection, pace.engine_series(engine_id), now_s - pace.KEPT_S)
    return [Point(each.at, each.numbers) for each in minutes]


def _store_jobs(connection: Connection, at_s: float) -> None:
    """Note how far each running job is, and forget what is more than a day old."""
    for job in pace.running_jobs(connection):
        numbers = {"ended": float(job.ended), "tokens": float(job.prompt_tokens + job.output_tokens)}
        pace.put_minute(connection, pace.job_series(job.id), at_s, numbers)
    pace.forget_old_minutes(connection, at_s)
