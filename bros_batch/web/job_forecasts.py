"""The forecasts of running jobs, and of jobs that somebody thinks of submitting.

`engine_load` says when a job is done, and the errors of earlier forecasts say how wide the interval has to be
(`forecast_log`).
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from bros_batch.db.forecast_errors import read_errors
from bros_batch.db.states import JobStatus
from bros_batch.db.table_rows import Job
from bros_batch.forecast import Forecast
from bros_batch.web.engine_load import EngineLoad, NewJob
from bros_batch.web.engine_pace import EnginePace

# The stages of a job, by the share of its rows that have ended.
STAGES = ((0.5, "half"), (0.1, "tenth"), (0.0, "begun"))


def stage_of(job: Job) -> str:
    """How far a job is; forecasts of one stage are wrong in a similar way."""
    share = job.ended / max(job.total, 1)
    return next((name for least, name in STAGES if job.ended and share >= least), "new")


def forecasts(
    connection: Connection, engine: EnginePace, asked: Sequence[Job], now_s: float
) -> dict[str, Forecast]:
    """By job id, when those of these jobs are done that are running; a job of which too little is known is left out."""
    raw = raw_forecasts(connection, engine, asked, now_s)
    errors = read_errors(connection) if raw else {}
    stages = {job.id: stage_of(job) for job in asked}
    return {job_id: each.calibrated(errors.get(stages[job_id], ())) for job_id, each in raw.items()}


def raw_forecasts(
    connection: Connection, engine: EnginePace, asked: Sequence[Job], now_s: float
) -> dict[str, Forecast]:
    """The forecasts before earlier errors are considered."""
    wanted = [job for job in asked if job.status == JobStatus.IN_PROGRESS]
    loads = {job.model: EngineLoad(connection, engine, job.model, now_s) for job in wanted}
    found = ((job.id, loads[job.model].forecast(job)) for job in wanted)
    return {job_id: each for job_id, each in found if each is not None}


def forecast_of_new(
    connection: Connection, engine: EnginePace, new: NewJob, now_s: float
) -> tuple[Forecast | None, float]:
    """When a job would be done if it were submitted now, and the output tokens of a row that this assumes."""
    found, output_tokens = EngineLoad(connection, engine, new.model, now_s).forecast_of_new(new)
    if found is not None:
        found = found.calibrated(read_errors(connection).get("new", ()))
    return found, output_tokens
