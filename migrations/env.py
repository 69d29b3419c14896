"""Alembic's entry: runs the migrations on the connection of `db.connections.upgrade`, in its transaction.

From alembic's own command line (to write a new revision) it connects to the settings' database.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from bros_batch.db.connections import open_database, writing
from bros_batch.db.tables import metadata
from bros_batch.settings import get_settings


def run(connection: Connection) -> None:
    # transactional_ddl: alembic takes it that SQLite has none, which is so only of Python's implicit transactions.
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with writing(open_database(get_settings().resolved_database_url)) as opened:
        run(opened)
