"""What a forecast of a job says besides its time, in words."""

from __future__ import annotations

from collections.abc import Mapping


def reused_rows(count: int) -> str:
    """How many rows cost nothing; empty if none does."""
    if not count:
        return ""
    which = (
        "1 row has the answer of an equal one"
        if count == 1
        else f"{count:,} rows have the answers of equal ones"
    )
    return f"about {which}; computed once"


def effect_on_chats(chats: Mapping[str, float | None]) -> str:
    """What chats notice while bulk runs, by those of the last time; empty if there were none."""
    beside, alone, in_time = chats["beside_bulk_s"], chats["alone_s"], chats["in_time"]
    if beside is None:
        return ""
    compared = "" if alone is None else f" instead of {alone * 1000:.0f} ms"
    kept = "" if in_time is None else f"; {in_time:.0%} of the latest were within their limits"
    return f"about {beside * 1000:.0f} ms per token meanwhile{compared}{kept}"
