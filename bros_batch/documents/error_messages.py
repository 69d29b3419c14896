"""Error messages about lines, in a form that every database can store."""

from __future__ import annotations

MAX_MESSAGE_CHARS = 2000


def storable(message: str) -> str:
    """The message without NUL characters and unpaired surrogates, cut to 2,000 characters."""
    return message.replace("\0", "\\0").encode(errors="replace").decode()[:MAX_MESSAGE_CHARS]
