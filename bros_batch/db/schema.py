"""The version of the database's schema: how to check it and how to upgrade it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, inspect, text

import migrations
from bros_batch.db.connections import is_postgres, open_database, writing

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(migrations.__file__).parent
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
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def revisions() -> list[str]:
    """The versions of the schema, the newest last. The name of a migration's file begins with its version."""
    return sorted(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def check_schema(database: Engine) -> None:
    """Raise `DatabaseTooOld` or `DatabaseTooNew` unless the schema is exactly this program's.

    Every start of a service comes here, so it does without Alembic, which takes longer to load than everything else.
    """
    current = None
    with database.begin() as connection:
        if inspect(connection).has_table("alembic_version"):
            current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    known = revisions()
    if current == known[-1]:
        return
    if current is not None and current not in known:
        raise DatabaseTooNew(
            f"the database's schema ({current}) is newer than this bros-batch; install the newer version"
        )
    raise DatabaseTooOld("the database's schema is older than this bros-batch; run `bros-batch db upgrade`")


def upgrade(url: str) -> None:
    """Upgrade the schema to the newest version. Several processes may call this at once: one of them does it while
    the others wait."""
    from alembic import command

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
