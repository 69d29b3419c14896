"""Queries about engines, as their heartbeats describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from bros_batch.db.table_rows import EngineRow
from bros_batch.db.tables import engines


def upsert_engines(connection: Connection, heartbeats: Sequence[Mapping[str, Any]], now_s: float) -> None:
    """Store the latest heartbeat of each engine: a map with engine_id, host, device, model and anything else."""
    for heartbeat in heartbeats:
        engine_id = str(heartbeat["engine_id"])
        row = {
            "host": str(heartbeat.get("host", "")),
            "device": str(heartbeat.get("device", "")),
            "model": str(heartbeat.get("model", "")),
            "heartbeat_at": now_s,
            "stats": dict(heartbeat),
        }
        changed = connection.execute(update(engines).where(engines.c.id == engine_id).values(**row)).rowcount
        if not changed:
            connection.execute(insert(engines).values(id=engine_id, **row))


def list_engines(connection: Connection, seen_after: float) -> list[EngineRow]:
    """Engines that have been seen since, in the order of their ids."""
    query = select(engines).where(engines.c.heartbeat_at >= seen_after).order_by(engines.c.id)
    return [EngineRow(*row) for row in connection.execute(query)]


def delete_silent_engines(connection: Connection, silent_since: float) -> int:
    return connection.execute(delete(engines).where(engines.c.heartbeat_at < silent_since)).rowcount
