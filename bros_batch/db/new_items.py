"""Queries that insert the items of a job at ingest."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from bros_batch.db.connections import is_postgres
from bros_batch.documents.new_item import NewItem


def insert_items(connection: Connection, job_id: str, rows: Sequence[NewItem], now_s: float) -> None:
    """Insert items into a job."""
    if rows:
        (_copy if is_postgres(connection) else _insert_many)(connection, job_id, rows, now_s)


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
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(_values(job_id, row, now_s))
