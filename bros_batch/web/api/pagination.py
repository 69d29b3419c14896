"""Pages of OpenAI's lists, in which clients advance by the last id they have seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def list_page(found: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return the first `limit` objects of `found` as a list object.

    Query for `limit + 1` objects: an additional one in `found` sets `has_more`.
    """
    data = list(found[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
