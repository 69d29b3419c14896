"""Queries about the generation of the Redis that this database was last used with."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from bros_batch.db.connections import is_postgres
from bros_batch.db.tables import meta

GENERATION = "redis_generation"


def get_generation(connection: Connection, *, lock: bool = False) -> str | None:
    """The generation of the Redis that holds the queued items. With `lock`, others who ask with it wait."""
    query = select(meta.c.value).where(meta.c.key == GENERATION)
    if lock and is_postgres(connection):
        query = query.with_for_update()
    return connection.scalar(query) or None


def set_generation(connection: Connection, generation: str) -> None:
    connection.execute(update(meta).where(meta.c.key == GENERATION).values(value=generation))
