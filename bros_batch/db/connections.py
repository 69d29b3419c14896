"""Connections, transactions and the schema's version. SQLite on one box, PostgreSQL beyond."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text

import migrations
from bros_batch.settings import get_settings

BUSY_TIMEOUT_MS = 30_000
# Any constant that no other program takes on the same PostgreSQL server: "bros" in ASCII.
UPGRADE_LOCK = 0x62726F73


class SchemaError(RuntimeError):
    """The database's schema is not the one that this program was written for."""


class DatabaseTooOld(SchemaError):
    pass


class DatabaseTooNew(SchemaError):
    pass


def make_engine(url: str) -> Engine:
    """An engine for `sqlite:///path` or `postgresql://...` (psycopg 3). Use it through `reading` and `writing`."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    return create_engine(parsed, pool_pre_ping=True, pool_size=5, max_overflow=10)


def _sqlite_engine(url: str) -> Engine:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise ValueError("SQLite needs a file: several processes share the database")
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin when we say so, not at the first write
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        # NORMAL survives any process; after a power cut the last commits may be gone. What they said is then
        # done again: the rows are still queued, their deliveries are not, and the sweep sees that.
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA cache_size = -32768")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A transaction that reads first and writes later fails with "database is locked" when another wrote in
        # between, and no timeout helps. So writers take the write lock at once.
        writes = connection.get_execution_options().get("bros_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads: one consistent snapshot on SQLite, statement by statement on PostgreSQL."""
    with engine.begin() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes; commits at the end, rolls back on an exception."""
    with engine.execution_options(bros_writes=True).begin() as connection:
        yield connection


@cache
def get_engine() -> Engine:
    """This process's engine. Made on first use, so after a fork."""
    return make_engine(get_settings().resolved_database_url)


def is_postgres(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def alembic_config() -> Config:
    """Alembic's configuration without an alembic.ini: the migrations lie in their package."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


def check_schema(engine: Engine) -> None:
    """Raise `DatabaseTooOld` or `DatabaseTooNew` unless the schema is exactly this program's."""
    with engine.begin() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(alembic_config())
    if current == scripts.get_current_head():
        return
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise DatabaseTooNew(
            f"the database's schema ({current}) is newer than this bros-batch; install the newer version"
        )
    raise DatabaseTooOld("the database's schema is older than this bros-batch; run `bros-batch db upgrade`")


def upgrade(url: str) -> None:
    """Bring the schema up to date. Safe to run by several processes at once: one does it, the others wait."""
    engine = make_engine(url)
    try:
        with writing(engine) as connection:
            if is_postgres(connection):
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()
