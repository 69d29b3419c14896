"""Validity of API keys: the key in the settings, and those in the database."""

from __future__ import annotations

import hashlib
import hmac
import time

from sqlalchemy import Connection

from bros_batch.db.api_keys import find_api_key
from bros_batch.web.app_state import AppState

CACHE_S = 10.0


async def is_valid_key(state: AppState, key: str) -> bool:
    """Return whether `key` is the server's own key or one of those in the database."""
    own_key = state.settings.api_key
    if own_key and hmac.compare_digest(key.encode(), own_key.encode()):
        return True

    def find(connection: Connection) -> bool:
        return find_api_key(connection, key) is not None

    return await state.read(find)


class KeyCache:
    """Remembers valid keys for CACHE_S seconds, so that not every request reads the database."""

    def __init__(self) -> None:
        self._valid_until_s: dict[bytes, float] = {}

    async def is_valid(self, state: AppState, key: str) -> bool:
        digest, now_s = hashlib.sha256(key.encode()).digest(), time.monotonic()
        if self._valid_until_s.get(digest, 0.0) > now_s:
            return True
        if not await is_valid_key(state, key):
            return False
        self._valid_until_s = {
            each: until_s for each, until_s in self._valid_until_s.items() if until_s > now_s
        }
        self._valid_until_s[digest] = now_s + CACHE_S
        return True
