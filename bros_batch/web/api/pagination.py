"""OpenAI's lists, which clients page through by the last id they saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def page_of(found: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A list of the first `limit` of `found`, which was asked for one more to learn whether more follow."""
    data = list(found[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
