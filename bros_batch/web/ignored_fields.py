"""The trace of request fields without effect: a header of the response, and a line in the log."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence

from starlette.requests import Request
from starlette.types import Scope

IGNORED_HEADER = "x-bros-ignored"
HEADER_SAFE = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
MAX_NAMES = 32
MAX_LOGGED = 1000

logger = logging.getLogger(__name__)


def note_ignored(request: Request, names: Iterable[str]) -> None:
    """Name these fields of the request's body in the header of its response. The log names each field once per path."""
    noted: list[str] = request.scope["state"].setdefault("ignored", [])
    for name in names:
        noted.append(name)
        _first_time(request.url.path, name)


def ignored_header(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Return the header that names the fields without effect; nothing if there are none."""
    names: Sequence[str] = scope["state"].get("ignored", ())
    if not names:
        return []
    shown = [_safe(name) for name in names[:MAX_NAMES]]
    if len(names) > MAX_NAMES:
        shown.append("...")
    return [(IGNORED_HEADER.encode(), ", ".join(shown).encode())]


def _safe(name: str) -> str:
    return name if HEADER_SAFE.fullmatch(name) else "?"


_logged: set[tuple[str, str]] = set()


def _first_time(path: str, name: str) -> None:
    # The index of a message says nothing about the client.
    entry = (path, re.sub(r"\[\d+\]", "[]", _safe(name)))
    if entry not in _logged and len(_logged) < MAX_LOGGED:
        _logged.add(entry)
        logger.info("ignoring %s in requests to %s", entry[1], path)
