"""Fields of the entries in the Redis streams that are plain text, and their numbers read with care.

An entry of the items stream has `p` (ItemRequest), and so that nobody has to decode that: `i` (item id), `e` (epoch),
`j` (job id) and `r` (priority). An entry of the results stream has `p` (ItemResult), `s` (key of the items stream) and
`x` (id of the entry there).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_ITEM_ID = 2**63 - 1
MAX_EPOCH = 2**31 - 1

_NUMBER = re.compile(rb"-?[0-9]{1,19}")


def read_number(value: object, least: int, most: int) -> int | None:
    """The decimal number that a field holds, or None if it holds anything else or a number out of range."""
    if not isinstance(value, bytes) or not _NUMBER.fullmatch(value):
        return None
    number = int(value)
    return number if least <= number <= most else None


def identity(fields: Mapping[bytes, bytes]) -> tuple[int, int] | None:
    """The item id and the epoch of an entry of an items stream, or None if it identifies no item."""
    item_id = read_number(fields.get(b"i"), 0, MAX_ITEM_ID)
    epoch = read_number(fields.get(b"e"), 0, MAX_EPOCH)
    return None if item_id is None or epoch is None else (item_id, epoch)


def describe(fields: Mapping[bytes, bytes]) -> str:
    """The names and sizes of the fields of an entry that cannot be read, for a line in a log."""
    shown = [f"{name[:40]!r}: {len(value)} bytes" for name, value in list(fields.items())[:8]]
    return ", ".join([*shown, *(["..."] if len(fields) > 8 else [])])
