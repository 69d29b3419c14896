"""Values of JSON as the text of a cell."""

from __future__ import annotations

from typing import Any

import msgspec


def cell_text(value: Any) -> str:
    """Text as it is, null as nothing, and anything else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()
