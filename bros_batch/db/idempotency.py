"""Queries about idempotency keys: which request has already created which job.

A key is kept for a day. It belongs to the client that sent it: `key_id` hashes the client's credentials with it.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, delete, exists, select, text

from bros_batch.db.table_rows import IdempotencyKey
from bros_batch.db.tables import idempotency_keys

KEPT_S = 24 * 3600.0


def key_id(credentials: str, key: str) -> str:
    """The id under which a client's key is stored. Neither the key nor the credentials can be read from it."""
    return hashlib.sha256(f"{len(credentials)}:{credentials}{key}".encode()).hexdigest()


def find_key(connection: Connection, wanted: str, now_s: float) -> IdempotencyKey | None:
    """The request that used a key, unless that was more than a day ago."""
    query = select(idempotency_keys).where(
        idempotency_keys.c.id == wanted, idempotency_keys.c.created_at > now_s - KEPT_S
    )
    row = connection.execute(query).first()
    return IdempotencyKey(*row) if row else None


def claim_key(connection: Connection, claimed: IdempotencyKey) -> IdempotencyKey:
    """Record that a request uses a key, unless another one has. Returns the request that has the key.

    Of several at the same time one gets it; on PostgreSQL the others wait here until that one commits or fails.
    """
    too_old = idempotency_keys.c.created_at <= claimed.created_at - KEPT_S
    connection.execute(delete(idempotency_keys).where(idempotency_keys.c.id == claimed.id, too_old))
    connection.execute(
        text(
            "INSERT INTO idempotency_keys (id, fingerprint, job_id, created_at) "
            "VALUES (:id, :fingerprint, :job_id, :created_at) ON CONFLICT (id) DO NOTHING"
        ),
        {
            "id": claimed.id,
            "fingerprint": claimed.fingerprint,
            "job_id": claimed.job_id,
            "created_at": claimed.created_at,
        },
    )
    return find_key(connection, claimed.id, claimed.created_at) or claimed


def has_old_keys(connection: Connection, now_s: float) -> bool:
    """Whether `delete_old_keys` would delete any."""
    return bool(connection.scalar(select(exists().where(idempotency_keys.c.created_at < now_s - KEPT_S))))


def delete_old_keys(connection: Connection, now_s: float) -> int:
    """Delete the keys that are no longer honored. Returns how many they were."""
    query = delete(idempotency_keys).where(idempotency_keys.c.created_at < now_s - KEPT_S)
    return int(connection.execute(query).rowcount)
