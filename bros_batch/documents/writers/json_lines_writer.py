"""JSON lines: one object per row, with all columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO, Any

import msgspec


def write_json_lines(file: IO[bytes], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Write a table. Returns the number of rows."""
    encode = msgspec.json.Encoder().encode
    count = 0
    for row in rows:
        file.write(encode(dict(zip(columns, row, strict=True))) + b"\n")
        count += 1
    return count
