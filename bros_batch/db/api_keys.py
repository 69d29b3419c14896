"""Queries about API keys: create, find, list and revoke them."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import asdict

from sqlalchemy import Connection, insert, select, update

from bros_batch.db.tables import ApiKey, api_keys


def create_api_key(connection: Connection, name: str, now_s: float | None = None) -> tuple[ApiKey, str]:
    """Create a key. Returns its row and the key itself, which is shown this once and stored nowhere."""
    secret = f"bros-{secrets.token_urlsafe(32)}"
    key = ApiKey(
        id=f"key_{secrets.token_hex(8)}",
        name=name,
        sha256=digest_of(secret),
        created_at=time.time() if now_s is None else now_s,
        revoked_at=None,
    )
    connection.execute(insert(api_keys), asdict(key))
    return key, secret


def list_api_keys(connection: Connection) -> list[ApiKey]:
    """All keys, oldest first, revoked ones included."""
    return [ApiKey(*row) for row in connection.execute(select(api_keys).order_by(api_keys.c.created_at))]


def revoke_api_key(connection: Connection, key_id: str, now_s: float | None = None) -> bool:
    """Revoke a key. False if there is no such key or it was revoked before."""
    query = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    return bool(connection.execute(query.values(revoked_at=time.time() if now_s is None else now_s)).rowcount)


def digest_of(secret: str) -> str:
    """The form in which a key is stored. Keys are long and random, so a fast digest suffices."""
    return hashlib.sha256(secret.encode()).hexdigest()
