"""Queries about engines, API keys, and the Redis this database last worked with."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from bros_batch.db.connections import is_postgres
from bros_batch.db.tables import ApiKey, EngineRow, api_keys, engines, meta

GENERATION = "redis_generation"


def upsert_engines(connection: Connection, heartbeats: Sequence[Mapping[str, Any]], now_s: float) -> None:
    """Keep the latest heartbeat of each engine: maps with engine_id, host, device, model and anything else."""
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


def list_engines(connection: Connection, *, seen_after: float | None = None) -> list[EngineRow]:
    """Engines by id; `seen_after` leaves out those silent since then. `stats` is the whole heartbeat."""
    query = select(engines).order_by(engines.c.id)
    if seen_after is not None:
        query = query.where(engines.c.heartbeat_at >= seen_after)
    return [EngineRow.of(row) for row in connection.execute(query).mappings()]


def forget_engines(connection: Connection, silent_since: float) -> int:
    return connection.execute(delete(engines).where(engines.c.heartbeat_at < silent_since)).rowcount


def create_api_key(connection: Connection, name: str, now_s: float | None = None) -> tuple[ApiKey, str]:
    """A new key: its row, and the key itself, which is shown this once and stored nowhere."""
    secret = f"bros-{secrets.token_urlsafe(32)}"
    key = ApiKey(f"key_{secrets.token_hex(8)}", name, time.time() if now_s is None else now_s, None)
    connection.execute(
        insert(api_keys).values(id=key.id, name=name, sha256=_digest(secret), created_at=key.created_at)
    )
    return key, secret


def find_api_key(connection: Connection, secret: str) -> ApiKey | None:
    """The key that `secret` is, unless revoked. Compared by digest, so timing tells nothing about the key."""
    query = select(api_keys).where(api_keys.c.sha256 == _digest(secret), api_keys.c.revoked_at.is_(None))
    row = connection.execute(query).mappings().first()
    return ApiKey.of(row) if row else None


def list_api_keys(connection: Connection) -> list[ApiKey]:
    rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at)).mappings()
    return [ApiKey.of(row) for row in rows]


def revoke_api_key(connection: Connection, key_id: str, now_s: float | None = None) -> bool:
    query = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    return bool(connection.execute(query.values(revoked_at=time.time() if now_s is None else now_s)).rowcount)


def get_generation(connection: Connection, *, lock: bool = False) -> str | None:
    """The generation key of the Redis that queued rows were delivered to. `lock` makes others wait to ask."""
    query = select(meta.c.value).where(meta.c.key == GENERATION)
    if lock and is_postgres(connection):
        query = query.with_for_update()
    value = connection.scalar(query)
    return value or None


def set_generation(connection: Connection, generation: str) -> None:
    connection.execute(update(meta).where(meta.c.key == GENERATION).values(value=generation))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
