"""Text of users and for users: whether a request can contain it, and how a terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping


def is_text(value: str) -> bool:
    """Return whether a request can contain the text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown_name(name: str) -> str:
    """Return the name of a file as text: bytes that are not UTF-8 become replacement characters."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def time_left(forecast: Mapping[str, float]) -> str:
    """Format the forecast of a job as `about 3 min 20 s (2 min 50 s to 4 min)`."""
    low, middle, high = (duration(forecast[name]) for name in ("p10", "p50", "p90"))
    return f"about {middle}" + ("" if low == high else f" ({low} to {high})")


def safe(text: object) -> str:
    """Replace control characters in untrusted text, which could otherwise rewrite the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in str(text))


def duration(seconds: float) -> str:
    """Format a duration as `8 s`, `3 min 20 s`, `2 h 5 min` or `3 d 4 h`."""
    whole = max(0, round(seconds))
    for size, unit, part_size, part_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            part = whole % size // part_size
            return f"{whole // size} {unit}" + (f" {part} {part_unit}" if part else "")
    return f"{whole} s"
