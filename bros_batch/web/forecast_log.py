"""Compares forecasts with what came, so that later ones know how wrong they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from bros_batch.db import jobs
from bros_batch.db.forecast_errors import add_errors
from bros_batch.db.states import JobStatus
from bros_batch.db.table_rows import Job
from bros_batch.forecast import Forecast
from bros_batch.web.engine_pace import EnginePace
from bros_batch.web.job_forecasts import raw_forecasts, stage_of


@dataclass(frozen=True, slots=True)
class _Noted:
    at_s: float
    forecast: Forecast


class ForecastLog:
    """Notes one forecast of each stage of each running job, and its error once the job is completed."""

    def __init__(self) -> None:
        self._noted: dict[str, dict[str, _Noted]] = {}

    def note(self, connection: Connection, engine: EnginePace, running: Sequence[Job], now_s: float) -> None:
        """Note the forecasts of jobs that have come to a new stage."""
        new = [job for job in running if stage_of(job) not in self._noted.setdefault(job.id, {})]
        for job_id, found in raw_forecasts(connection, engine, new, now_s).items():
            stage = next(stage_of(job) for job in new if job.id == job_id)
            self._noted[job_id][stage] = _Noted(now_s, found)

    def has_ended(self, running: Sequence[Job]) -> bool:
        """Whether a job with noted forecasts does not run any more."""
        return not self._noted.keys() <= {job.id for job in running}

    def learn(self, connection: Connection, running: Sequence[Job]) -> None:
        """Store the errors of the forecasts of jobs that are completed, and forget those of others that ended."""
        errors: dict[str, list[float]] = {}
        for job_id in self._noted.keys() - {job.id for job in running}:
            job = jobs.get_job(connection, job_id)
            if job is not None and job.status == JobStatus.FINALIZING:
                continue
            noted = self._noted.pop(job_id)
            if job is None or job.status != JobStatus.COMPLETED or job.completed_at is None:
                continue
            for stage, each in noted.items():
                errors.setdefault(stage, []).append(each.forecast.error(job.completed_at - each.at_s))
        if errors:
            add_errors(connection, errors)
