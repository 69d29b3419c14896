"""Queries about the history of pace: what the engine and each running job did in each minute of the last day."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, delete, insert, select, update

from bros_batch.db.states import JobStatus
from bros_batch.db.table_rows import Job, PaceMinute
from bros_batch.db.tables import jobs, pace_minutes

MINUTE_S = 60
KEPT_S = 24 * 3600.0
MAX_JOBS = 200


def job_series(job_id: str) -> str:
    return f"job:{job_id}"


def engine_series(engine_id: str) -> str:
    return f"engine:{engine_id}"


def put_minute(connection: Connection, series: str, at_s: float, numbers: Mapping[str, float | None]) -> None:
    """Store what a series had in the minute that contains a time. Several web processes may store the same minute."""
    minute = int(at_s // MINUTE_S)
    key = f"{series}@{minute}"
    values = {"series": series, "at": float(minute * MINUTE_S), "numbers": dict(numbers)}
    if not connection.execute(update(pace_minutes).where(pace_minutes.c.id == key).values(values)).rowcount:
        connection.execute(insert(pace_minutes).values(id=key, **values))


def minutes_of(connection: Connection, series: str, after_s: float) -> list[PaceMinute]:
    """The minutes of a series after a time, oldest first."""
    query = (
        select(pace_minutes)
        .where(pace_minutes.c.series == series, pace_minutes.c.at >= after_s)
        .order_by(pace_minutes.c.at)
    )
    return [PaceMinute(*row) for row in connection.execute(query)]


def forget_old_minutes(connection: Connection, now_s: float) -> int:
    """Delete the minutes of more than a day ago."""
    return connection.execute(delete(pace_minutes).where(pace_minutes.c.at < now_s - KEPT_S)).rowcount


def running_jobs(connection: Connection) -> list[Job]:
    """The jobs over files that run now, those submitted first first, and at most as many as a history is kept for."""
    query = (
        select(jobs)
        .where(jobs.c.status == JobStatus.IN_PROGRESS, jobs.c.input_file_id != "")
        .order_by(jobs.c.created_at)
        .limit(MAX_JOBS)
    )
    return [Job(*row) for row in connection.execute(query)]
