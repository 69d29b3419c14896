"""Queries about API keys: create, list, change and revoke them, and the shares of their owners."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from bros_batch.db.table_rows import ApiKey
from bros_batch.db.tables import api_keys


@dataclass(frozen=True, slots=True)
class KeyTerms:
    """What a key gives access to, and how much of it: see `ApiKey`."""

    owner: str = ""
    weight: float = 1.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_queued_items: int | None = None
    max_jobs: int | None = None
    notify_url: str | None = None


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
        notify_secret=None if terms.notify_url is None else new_notify_secret(),
        **asdict(terms),
    )
    connection.execute(insert(api_keys), asdict(key))
    return key, secret


def list_api_keys(connection: Connection) -> list[ApiKey]:
    """All keys, oldest first, revoked ones included."""
    return [ApiKey(*row) for row in connection.execute(select(api_keys).order_by(api_keys.c.created_at))]


def terms_of(key: ApiKey) -> KeyTerms:
    return KeyTerms(*(getattr(key, name) for name in KeyTerms.__slots__))


def change_api_key(connection: Connection, key: ApiKey, **terms: Any) -> ApiKey:
    """Give a key other terms, by the names of the fields of `KeyTerms`. Returns the key as it is then.

    The secret of its webhook comes and goes with the URL, and stays when one URL takes the place of another.
    """
    if "notify_url" in terms:
        has_url = terms["notify_url"] is not None
        terms["notify_secret"] = (key.notify_secret or new_notify_secret()) if has_url else None
    connection.execute(update(api_keys).where(api_keys.c.id == key.id).values(**terms))
    return ApiKey(*connection.execute(select(api_keys).where(api_keys.c.id == key.id)).one())


def new_notify_secret() -> str:
    """A new secret for webhook calls, in the form that Standard Webhooks defines."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"


def notify_secret_of(connection: Connection, key_id: str | None) -> str | None:
    """The secret that signs webhook calls for the jobs of a key, if the key has one."""
    return connection.scalar(select(api_keys.c.notify_secret).where(api_keys.c.id == key_id))


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
