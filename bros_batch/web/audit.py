"""The audit log: one line of JSON for everything that was rejected or changed, and who asked for it.

It never contains keys or contents. The same rejection of the same client repeats only at counts that double, so that an
attack cannot fill the disk.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from starlette.types import Scope

logger = logging.getLogger("bros.audit")

REJECTIONS = frozenset({401, 403, 408, 413, 414, 415, 429, 431})
WINDOW_S = 60.0
ALWAYS_LOGGED = 5
MAX_CLIENTS = 1000
MAX_CHARS = 200


class Repetitions:
    """Counts equal events within WINDOW_S, and decides which of them are logged."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._until_s = 0.0

    def count(self, what: str, address: str, now_s: float) -> int | None:
        """Count an event. Returns how often it has occurred, or None if that is not worth another line."""
        if now_s >= self._until_s:
            self._counts.clear()
            self._until_s = now_s + WINDOW_S
        entry = (what, address)
        if entry not in self._counts and len(self._counts) >= MAX_CLIENTS:
            entry = (what, "others")
        count = self._counts[entry] = self._counts.get(entry, 0) + 1
        is_power_of_two = count & (count - 1) == 0
        return count if count <= ALWAYS_LOGGED or is_power_of_two else None


_repetitions = Repetitions()


def log_change(scope: Scope, event: str, **what: Any) -> None:
    """Log something that was done, such as `job.created`; `what` names its objects."""
    _write({"event": event, **what, **_request(scope)})


def log_rejection(scope: Scope, status: int, code: str | None) -> None:
    """Log a request that was rejected with `status`."""
    count = _repetitions.count(f"{status} {code}", _address(scope), time.monotonic())
    if count is not None:
        _write({"event": "rejected", "status": status, "code": code, "count": count, **_request(scope)})


def log_key_change(event: str, key_id: str, name: str) -> None:
    """Log that a key was created or revoked, which happens outside of this process."""
    _write({"event": event, "subject": key_id, "subject_name": name})


def _request(scope: Scope) -> dict[str, Any]:
    """Who sent a request, and what it asks for. A part that is unknown is left out."""
    state = scope.get("state", {})
    key = state.get("key")
    fields = {
        "method": scope.get("method"),
        "path": scope.get("path"),
        "key": key and key.id,
        "key_name": key and key.name,
        "address": _address(scope),
        "request_id": state.get("request_id"),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _write(fields: dict[str, Any]) -> None:
    short = {name: value[:MAX_CHARS] if isinstance(value, str) else value for name, value in fields.items()}
    # ASCII only, so that no character of a path can end the line or change how a terminal shows it.
    logger.info("%s", json.dumps(short))
