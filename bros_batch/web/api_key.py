"""Valid API keys: the server's own key from the settings, and those in the database.

All keys are kept in memory and read again from the database after REFRESH_S, so that a new or revoked key takes effect
within that time, and neither valid nor invalid keys cost a query per request.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from bros_batch.db.api_keys import NO_TERMS, KeyTerms, digest_of, terms_of
from bros_batch.db.table_rows import ApiKey
from bros_batch.web.audit import log_key_change
from bros_batch.web.errors import ApiError

logger = logging.getLogger(__name__)

REFRESH_S = 2.0
UNKNOWN_S = 0.25
# While the database does not respond, keys that were valid stay valid for this long.
STALE_S = 30.0
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Key:
    """A valid key. `id` is SERVER_KEY_ID for the server's own."""

    id: str
    name: str
    sha256: str
    terms: KeyTerms = NO_TERMS


SERVER_KEY_ID = "server"


class KeyRing:
    """The valid keys. `load` returns all keys of the database, revoked ones included."""

    def __init__(self, server_key: str | None, load: Callable[[], Awaitable[Sequence[ApiKey]]]) -> None:
        self._server_key: Key | None = None
        if server_key:
            self._server_key = Key(SERVER_KEY_ID, "BROS_API_KEY", digest_of(server_key))
        self._load = load
        self._rows: Mapping[str, ApiKey] | None = None
        self._by_digest: dict[str, Key] = {}
        self._by_id: dict[str, Key] = {}
        self._read_at_s = 0.0
        self._failure: ApiError | None = None
        self._failed_at_s = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def is_needed(self) -> bool:
        """Return whether requests need a key: if the server has one, or as soon as the first one was created.

        That stays so when all keys have been revoked: revoking a key must not open the server.
        """
        if self._server_key is not None or self._rows:
            return True
        if self._rows is None or time.monotonic() - self._read_at_s > REFRESH_S:
            await self._refresh(REFRESH_S, stale_s=float("inf"))
        return bool(self._rows)

    async def find(self, secret: str) -> Key | None:
        """Return the valid key `secret`."""
        digest = hashlib.sha256(secret.encode()).hexdigest()
        if self._server_key is not None and hmac.compare_digest(digest, self._server_key.sha256):
            return self._server_key
        # Digests are looked up, not keys, so the time that it takes reveals nothing.
        await self._refresh(REFRESH_S)
        if digest not in self._by_digest:
            # It may have been created a moment ago. Those who try keys share a few queries per second.
            asked_s = time.monotonic()
            await asyncio.sleep(self._read_at_s + UNKNOWN_S - asked_s)
            if self._read_at_s <= asked_s:  # a timer may fire a little early, so the age says nothing here
                await self._refresh(0.0)
        return self._by_digest.get(digest)

    async def get(self, key_id: str) -> Key | None:
        """Return the valid key with this id."""
        if key_id == SERVER_KEY_ID:
            return self._server_key
        await self._refresh(REFRESH_S)
        return self._by_id.get(key_id)

    async def _refresh(self, max_age_s: float, stale_s: float = STALE_S) -> None:
        """Read the keys unless that was done within `max_age_s`. Raises ApiError if the database is unavailable and
        what is known is older than `stale_s`."""
        now_s = time.monotonic()
        if self._rows is not None and now_s - self._read_at_s <= max_age_s:
            return
        if self._failure is None or now_s - self._failed_at_s > RETRY_S:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            await asyncio.shield(self._reading)
        if self._failure is not None and (self._rows is None or now_s - self._read_at_s > stale_s):
            raise self._failure

    async def _read(self) -> None:
        started_s = time.monotonic()
        try:
            rows = {row.id: row for row in await self._load()}
        except ApiError as error:
            self._failure, self._failed_at_s = error, time.monotonic()
            return
        if self._rows is not None:
            _log_changes(self._rows, rows)
        valid = [
            Key(row.id, row.name, row.sha256, terms_of(row))
            for row in rows.values()
            if row.revoked_at is None
        ]
        self._rows, self._read_at_s, self._failure = rows, started_s, None
        self._by_digest = {key.sha256: key for key in valid}
        self._by_id = {key.id: key for key in valid}


def _log_changes(before: Mapping[str, ApiKey], after: Mapping[str, ApiKey]) -> None:
    for key_id, row in after.items():
        if key_id not in before:
            log_key_change("key.created", key_id, row.name)
        if row.revoked_at is not None and (key_id not in before or before[key_id].revoked_at is None):
            log_key_change("key.revoked", key_id, row.name)
