"""Lengths and points of time as people write them: `90m`, `24h`, `7d`."""

from __future__ import annotations

import re
from datetime import datetime

SPAN = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(s|m|h|d|w)")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
MAX_SPAN_S = 366 * 86400.0


def seconds_of(span: str) -> float:
    """`24h` as seconds. Raises ValueError with a clause that says what is possible."""
    match = SPAN.fullmatch(span.strip())
    seconds = float(match[1]) * SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= MAX_SPAN_S:
        raise ValueError("must be a span of time up to a year, such as '90m', '24h' or '7d'")
    return seconds


def deadline_of(value: str | float, now_s: float) -> float:
    """Unix time of a span from now, a point in ISO 8601 with its offset, or unix seconds. Raises ValueError."""
    if isinstance(value, str):
        try:
            point = datetime.fromisoformat(value)
        except ValueError:
            return now_s + seconds_of(value)
        if point.tzinfo is None:
            raise ValueError("must say its offset from UTC, as in '2026-01-31T06:00:00Z'")
        value = point.timestamp()
    if not now_s < value <= now_s + MAX_SPAN_S:
        raise ValueError("must lie in the future, and within a year")
    return value
