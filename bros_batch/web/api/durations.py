"""Durations and deadlines as users write them: `90m`, `24h`, `7d`."""

from __future__ import annotations

import re
from datetime import datetime

DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(s|m|h|d|w)")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
MAX_DURATION_S = 366 * 86400.0
# How long a client may ask for a file to be kept: OpenAI's bounds.
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 30 * 24 * 3600


def seconds_of(duration: str) -> float:
    """Return a duration such as `24h` in seconds.

    Raises ValueError; its message is a predicate that says what is allowed.
    """
    match = DURATION.fullmatch(duration.strip())
    seconds = float(match[1]) * SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= MAX_DURATION_S:
        raise ValueError("must be a duration of up to a year, such as '90m', '24h' or '7d'")
    return seconds


def deadline_of(value: str | float, now_s: float) -> float:
    """Return a deadline in Unix seconds, given as a duration from now, in ISO 8601 with an offset, or in Unix seconds.

    Raises ValueError; its message is a predicate that says what is allowed.
    """
    if isinstance(value, str):
        try:
            point = datetime.fromisoformat(value)
        except ValueError:
            return now_s + seconds_of(value)
        if point.tzinfo is None:
            raise ValueError("must have an offset from UTC, as in '2026-01-31T06:00:00Z'")
        value = point.timestamp()
    if not now_s < value <= now_s + MAX_DURATION_S:
        raise ValueError("must be in the future, and within a year")
    return value
