"""The version of the database's schema: how to check it and how to upgrade it."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

import migrations
from bros_batch.db.connections import is_postgres, open_database, writing

# Any constant that no other program uses on the same PostgreSQL server: "bros" in ASCII.
UPGRADE_LOCK = 0x62726F73


class SchemaError(RuntimeError):
    """The database's schema is not the one that this program was written for."""


class DatabaseTooOld(SchemaError):
    pass


class DatabaseTooNew(SchemaError):
    pass


def alembic_config() -> Config:
    """Alembic's configuration without an alembic.ini; the migrations are in their package."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


def check_schema(database: Engine) -> None:
    """Raise `DatabaseTooOld` or `DatabaseTooNew` unless the schema is exactly this program's."""
    with database.begin() as connection:
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
    """Upgrade the schema to the newest version. Several processes may call this at once: one of them does it while
    the others wait."""
    database = open_database(url)
    try:
        with writing(database) as connection:
            if is_postgres(connection):
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        database.dispose()
