"""Alembic's entry point: runs the migrations on the connection of `bros_batch.db.schema.upgrade`, in its transaction.

From Alembic's own command line, for example to write a new revision, it connects to the database of the settings.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from bros_batch.db.connections import open_database, writing
from bros_batch.db.tables import metadata
from bros_batch.settings import get_settings


def run(connection: Connection) -> None:
    # Alembic assumes that SQLite has no transactional DDL, which is true only of Python's implicit transactions.
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with writing(open_database(get_settings().resolved_database_url)) as opened:
        run(opened)
