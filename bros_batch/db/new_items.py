"""Queries that insert the items of a job at ingest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, select, text
from sqlalchemy.exc import IntegrityError

from bros_batch.db.connections import IDS_PER_QUERY, is_postgres
from bros_batch.db.tables import items
from bros_batch.documents.new_item import NewItem


class DuplicateCustomId(Exception):
    """A custom_id among the new items is already in the job."""


def insert_items(connection: Connection, job_id: str, rows: Sequence[NewItem], now_s: float) -> None:
    """Insert items into a job, all of them or none. Raises `DuplicateCustomId`."""
    if not rows:
        return
    insert = _copy if is_postgres(connection) else _insert_many
    savepoint = connection.begin_nested()
    try:
        insert(connection, job_id, rows, now_s)
    except IntegrityError as error:
        savepoint.rollback()
        raise DuplicateCustomId from error
    # After any other error the savepoint ends with the transaction. SQLite has undone all of it when the disk is full.
    savepoint.commit()


def lines_of_custom_ids(connection: Connection, job_id: str, custom_ids: Iterable[str]) -> dict[str, int]:
    """The lines of those of these custom ids that are already in the job."""
    wanted = list(custom_ids)
    found: dict[str, int] = {}
    for start in range(0, len(wanted), IDS_PER_QUERY):
        part = wanted[start : start + IDS_PER_QUERY]
        query = select(items.c.custom_id, items.c.line_no).where(
            items.c.job_id == job_id, items.c.custom_id.in_(part)
        )
        found.update((custom_id, line_no) for custom_id, line_no in connection.execute(query))
    return found


def analyze_items(connection: Connection) -> None:
    """Update PostgreSQL's statistics after a large ingest; its own daemon might do so a minute too late."""
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
    # With the driver's own placeholders: SQLAlchemy's would double the time that SQLite takes.
    statement = f"INSERT INTO items ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    connection.exec_driver_sql(statement, [_values(job_id, row, now_s) for row in rows])


def _copy(connection: Connection, job_id: str, rows: Sequence[NewItem], now_s: float) -> None:
    import psycopg  # installed only where PostgreSQL is used

    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    statement = f"COPY items ({_COLUMNS}) FROM STDIN"
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(_values(job_id, row, now_s))
    except psycopg.errors.UniqueViolation as error:
        raise IntegrityError(statement, None, error) from error
