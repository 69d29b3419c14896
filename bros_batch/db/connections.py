"""Connections and transactions: SQLite on one machine, PostgreSQL for several."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import DBAPIError, DisconnectionError

from bros_batch.db.packed_arrays import bigints, blobs, register
from bros_batch.settings import get_settings

BUSY_TIMEOUT_MS = 30_000
# A server that does not answer, or whose host is gone, is an error after these times, and not a wait without end. The
# parameters of libpq; a URL may have its own.
POSTGRES_LIMITS = {"connect_timeout": 10, "tcp_user_timeout": 30_000}
PROBE_AFTER_S = 0.5
POSTGRES_DISK_FULL = "53100"
# SQLite before 3.32 takes at most 999 parameters per statement.
IDS_PER_QUERY = 500


def open_database(url: str) -> Engine:
    """The database at `sqlite:///path` or `postgresql://...` (psycopg 3), to be used with `reading` and `writing`."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(url)
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError(
            f"{parsed.get_backend_name()}:// is not supported; BROS_DATABASE_URL must be sqlite:///path or postgresql://..."
        )
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    limits = {name: value for name, value in POSTGRES_LIMITS.items() if name not in parsed.query}
    database = create_engine(parsed, pool_size=5, max_overflow=10, connect_args=limits)
    _probe_idle_connections(database)

    @event.listens_for(database, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        register(connection)

    return database


def _probe_idle_connections(database: Engine) -> None:
    """Let a connection that was idle for a while be probed before it is used, and replaced if the server has gone.

    A worker uses the same ones many times per second: to probe them each time would be a tenth of what a group of items
    costs.
    """

    @event.listens_for(database, "checkin")
    def _on_checkin(_connection: Any, record: Any) -> None:
        record.info["idle_since_s"] = time.monotonic()

    @event.listens_for(database, "checkout")
    def _on_checkout(connection: Any, record: Any, _proxy: Any) -> None:
        idle_since_s = record.info.get("idle_since_s")
        if idle_since_s is None or time.monotonic() - idle_since_s < PROBE_AFTER_S:
            return
        try:
            database.dialect.do_ping(connection)
        except database.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError("the server has closed the connection") from error


def _open_sqlite(url: str) -> Engine:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise ValueError("SQLite needs a file, because several processes share the database")
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})

    @event.listens_for(database, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so, not at the first write
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA cache_size = -32768")
        cursor.close()

    @event.listens_for(database, "begin")
    def _on_begin(connection: Connection) -> None:
        # A transaction that reads first and writes later fails with "database is locked" if another one wrote in
        # between, and no timeout helps. So writers take the write lock when they begin.
        options = connection.get_execution_options()
        if options.get("bros_writes", False):
            durable = options.get("bros_durable", False)
            connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN")

    return database


@contextmanager
def reading(database: Engine) -> Iterator[Connection]:
    """Statements that only read: one consistent snapshot on SQLite, one per statement on PostgreSQL."""
    if database.dialect.name == "postgresql":
        # As transactions of their own, since a BEGIN and a COMMIT around them would be two more trips to the server.
        with database.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            yield connection
    else:
        with database.begin() as connection:
            yield connection


@contextmanager
def writing(database: Engine, *, durable: bool = False) -> Iterator[Connection]:
    """A transaction that writes. It commits at the end and rolls back on an exception.

    Any commit survives the death of any process. On SQLite, a power cut may undo the last commits, except those that
    are `durable` and all before them. Commits that somebody hears of are durable: a client that gets an answer, or an
    engine that gets an item. Others save the time: what they record is done again.
    """
    with database.execution_options(bros_writes=True, bros_durable=durable).begin() as connection:
        yield connection


@cache
def get_database() -> Engine:
    """The database of this process, opened on first use and so after a fork."""
    return open_database(get_settings().resolved_database_url)


def is_postgres(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def is_among(
    connection: Connection, column: ColumnElement[Any], values: Sequence[Any]
) -> ColumnElement[bool]:
    """Whether a column of ids or of keys has one of these values, at most `IDS_PER_QUERY`.

    PostgreSQL gets them as one array. So the statement is the same however many there are, and is prepared once.
    """
    if is_postgres(connection):
        pack, kind = (blobs, "BYTEA") if isinstance(column.type, LargeBinary) else (bigints, "BIGINT")
        among = text(f"{column} = ANY (CAST(:among AS {kind}[]))")
        return among.bindparams(among=pack(values))  # type: ignore[return-value]
    return column.in_(values)


def is_disk_full(error: DBAPIError) -> bool:
    """Whether a statement failed because the disk of the database is full."""
    return (
        getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or getattr(error.orig, "sqlstate", None) == POSTGRES_DISK_FULL
    )


def probe(connection: Connection) -> None:
    """Raise SQLAlchemy's error unless the database answers and has our tables."""
    connection.execute(text("SELECT 1 FROM jobs WHERE id = ''"))
