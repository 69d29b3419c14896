"""Queries of the two long tasks, ingest and finalize: the lease on their job, their progress, the rows they add."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, or_, select, text, update
from sqlalchemy.exc import IntegrityError

from bros_batch.db.connections import is_postgres
from bros_batch.db.job_control import lock_job
from bros_batch.db.states import JobStatus
from bros_batch.db.tables import Job, items, jobs

MAX_ERRORS_LISTED = 100


class LeaseLost(RuntimeError):
    """Another worker has the job now, or the job has moved on; the caller stops."""


@dataclass(frozen=True, slots=True)
class NewItem:
    """A line for the table: pending with a body, or failed with an error."""

    line_no: int
    custom_id: str | None
    body: str | None
    error_code: str | None = None
    error_message: str | None = None
    error_param: str | None = None


class DuplicateCustomId(Exception):
    """A custom_id of the chunk is in the job already."""


# Leases ---------------------------------------------------------------------------------------------------------------


def take_lease(
    connection: Connection, job_id: str, statuses: Sequence[JobStatus], lease_s: float, now_s: float
) -> tuple[Job, str] | None:
    """The job and a fresh token, unless the job is in none of these states or somebody's lease still runs."""
    token = secrets.token_hex(12)
    query = (
        update(jobs)
        .where(
            jobs.c.id == job_id,
            jobs.c.status.in_([status.value for status in statuses]),
            or_(jobs.c.lease_token.is_(None), jobs.c.lease_until < now_s),
        )
        .values(lease_token=token, lease_until=now_s + lease_s)
    )
    if not connection.execute(query).rowcount:
        return None
    return lock_job(connection, job_id), token


def hold_lease(connection: Connection, job_id: str, token: str, statuses: Sequence[JobStatus]) -> Job:
    """The job, its row locked, if the lease is still ours and the state still one of these; else `LeaseLost`."""
    query = select(jobs.c.lease_token, jobs.c.status).where(jobs.c.id == job_id).with_for_update()
    row = connection.execute(query).first()
    if row is None or row[0] != token or row[1] not in [status.value for status in statuses]:
        raise LeaseLost(job_id)
    return lock_job(connection, job_id)


def extend_lease(connection: Connection, job_id: str, until: float, **progress: Any) -> None:
    """Keep the lease that `hold_lease` has just checked, and note the progress made."""
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(lease_until=until, **progress))


def drop_lease(connection: Connection, job_id: str, token: str) -> None:
    """Let the next one go on at once."""
    query = update(jobs).where(jobs.c.id == job_id, jobs.c.lease_token == token)
    connection.execute(query.values(lease_token=None, lease_until=0.0))


def unattended_jobs(connection: Connection, statuses: Sequence[JobStatus], now_s: float) -> list[str]:
    """Jobs that wait for a long task that nobody does: never begun, or its lease ran out."""
    query = select(jobs.c.id).where(
        jobs.c.status.in_([status.value for status in statuses]),
        or_(jobs.c.lease_token.is_(None), jobs.c.lease_until < now_s),
    )
    return list(connection.scalars(query))


# Rows -----------------------------------------------------------------------------------------------------------------


def insert_items(connection: Connection, job_id: str, rows: Sequence[NewItem], now_s: float) -> None:
    """Add a chunk of lines. Raises `DuplicateCustomId`, having added none of them."""
    if not rows:
        return
    try:
        with connection.begin_nested():
            if is_postgres(connection):
                _copy(connection, job_id, rows, now_s)
            else:
                _insert_many(connection, job_id, rows, now_s)
    except IntegrityError as error:
        raise DuplicateCustomId from error


def existing_custom_ids(connection: Connection, job_id: str, custom_ids: Iterable[str]) -> set[str]:
    """Which of these the job has already."""
    wanted = list(custom_ids)
    found: set[str] = set()
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        query = select(items.c.custom_id).where(items.c.job_id == job_id, items.c.custom_id.in_(part))
        found.update(custom_id for custom_id in connection.scalars(query) if custom_id is not None)
    return found


def analyze_items(connection: Connection) -> None:
    """Tell PostgreSQL what a large ingest did to the table; its own daemon might come a minute late."""
    if is_postgres(connection):
        connection.execute(text("ANALYZE items"))


_COLUMNS = "job_id, line_no, custom_id, status, body, error_code, error_message, finished_at"


def _values(job_id: str, row: NewItem, now_s: float) -> tuple[object, ...]:
    finished_at = None if row.error_code is None else now_s
    status = "pending" if row.error_code is None else "failed"
    return (
        job_id,
        row.line_no,
        row.custom_id,
        status,
        row.body,
        row.error_code,
        row.error_message,
        finished_at,
    )


def _insert_many(connection: Connection, job_id: str, rows: Sequence[NewItem], now_s: float) -> None:
    # The driver's own placeholders: the toolkit's would cost as much time again as SQLite takes.
    statement = f"INSERT INTO items ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    connection.exec_driver_sql(statement, [_values(job_id, row, now_s) for row in rows])


def _copy(connection: Connection, job_id: str, rows: Sequence[NewItem], now_s: float) -> None:
    import psycopg  # with PostgreSQL only

    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    statement = f"COPY items ({_COLUMNS}) FROM STDIN"
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(_values(job_id, row, now_s))
    except psycopg.errors.UniqueViolation as error:
        raise IntegrityError(statement, None, error) from error
