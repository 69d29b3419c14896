"""Queries about API keys: create, list, change and revoke them, and the shares of their owners."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from bros_batch.db.tables import ApiKey, api_keys


@dataclass(frozen=True, slots=True)
class KeyTerms:
    """What a key gives access to, and how much of it: see `ApiKey`."""

    owner: str = ""
    weight: float = 1.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_queued_items: int | None = None
    max_jobs: int | None = None


NO_TERMS = KeyTerms()


def create_api_key(
    connection: Connection, name: str, now_s: float | None = None, terms: KeyTerms = NO_TERMS
) -> tuple[ApiKey, str]:
    """Create a key. Returns its row and the key itself, which is shown this once and stored nowhere."""
    secret = f"bros-{secrets.token_urlsafe(32)}"
    key = ApiKey(
        id=f"key_{secrets.token_hex(8)}",
        name=name,
        sha256=digest_of(secret),
        created_at=time.time() if now_s is None else now_s,
        revoked_at=None,
        **asdict(terms),
    )
    connection.execute(insert(api_keys), asdict(key))
    return key, secret


def list_api_keys(connection: Connection) -> list[ApiKey]:
    """All keys, oldest first, revoked ones included."""
    return [ApiKey(*row) for row in connection.execute(select(api_keys).order_by(api_keys.c.created_at))]


def terms_of(key: ApiKey) -> KeyTerms:
    return KeyTerms(*(getattr(key, name) for name in KeyTerms.__slots__))


def change_api_key(connection: Connection, key_id: str, **terms: Any) -> None:
    """Give a key other terms, by the names of the fields of `KeyTerms`."""
    connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(**terms))


def weights_of(connection: Connection, owners: Collection[str]) -> dict[str, float]:
    """The weights of owners: each has that of its valid key with the highest one, or 1 without a key."""
    query = select(api_keys.c.owner, func.max(api_keys.c.weight)).where(
        api_keys.c.owner.in_(owners), api_keys.c.revoked_at.is_(None)
    )
    found = {owner: float(weight) for owner, weight in connection.execute(query.group_by(api_keys.c.owner))}
    return {owner: found.get(owner, 1.0) for owner in owners}


def revoke_api_key(connection: Connection, key_id: str, now_s: float | None = None) -> bool:
    """Revoke a key. False if there is no such key or it was revoked before."""
    query = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    return bool(connection.execute(query.values(revoked_at=time.time() if now_s is None else now_s)).rowcount)


def digest_of(secret: str) -> str:
    """The form in which a key is stored. Keys are long and random, so a fast digest suffices."""
    return hashlib.sha256(secret.encode()).hexdigest()
