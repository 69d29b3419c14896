"""Arrays as parameters of PostgreSQL, in its binary format.

psycopg packs an array element by element, which takes longer than all else that a statement about hundreds of items
costs. A parameter that is packed here needs a cast in its statement, which names its type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any

# As in the system catalog pg_type.
BYTEA, BIGINT, INTEGER, TEXT = 17, 20, 23, 25

_HEADER = struct.Struct(
    "!iiIii"
)  # dimensions, whether it has nulls, type, length, number of the first element
_EMPTY = struct.Struct("!iiI")
_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)


class PackedArray:
    """An array that is passed to PostgreSQL as it is."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


def bigints(values: Sequence[int]) -> PackedArray:
    return _numbers(BIGINT, "iq", 8, values)


def integers(values: Sequence[int]) -> PackedArray:
    return _numbers(INTEGER, "ii", 4, values)


def texts(values: Sequence[str | None]) -> PackedArray:
    return _pieces(TEXT, [None if value is None else value.encode() for value in values])


def blobs(values: Sequence[bytes]) -> PackedArray:
    return _pieces(BYTEA, values)


def _numbers(kind: int, form: str, size: int, values: Sequence[int]) -> PackedArray:
    elements = chain.from_iterable(zip(repeat(size), values, strict=False))
    try:
        packed = struct.pack(f"!{form * len(values)}", *elements)
    except struct.error as error:
        raise OverflowError(f"a number is out of range: {error}") from error
    return PackedArray(_head(kind, len(values)) + packed)


def _pieces(kind: int, values: Sequence[bytes | None]) -> PackedArray:
    pack = _LENGTH.pack
    elements: Iterable[bytes] = chain.from_iterable(
        (_NULL,) if value is None else (pack(len(value)), value) for value in values
    )
    return PackedArray(_head(kind, len(values), has_nulls=None in values) + b"".join(elements))


def _head(kind: int, length: int, *, has_nulls: bool = False) -> bytes:
    return _HEADER.pack(1, has_nulls, kind, length, 1) if length else _EMPTY.pack(0, 0, kind)


def register(connection: Any) -> None:
    """Let a psycopg connection pass packed arrays."""
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class PackedDumper(Dumper):
        format = Format.BINARY

        def dump(self, obj: PackedArray) -> bytes:
            return obj.data

    connection.adapters.register_dumper(PackedArray, PackedDumper)
