"""A table as lines of a job's input file: one document per row, or the message of a row that could not be read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import msgspec

from bros_batch.documents.form import ERROR_FIELD
from bros_batch.documents.readers.table import BadRow, Row, Table

_encode = msgspec.json.Encoder().encode


def table_lines(table: Table) -> Iterator[bytes]:
    """Yield the lines. JSON lines stay as they are: they may be requests, and the service says what is wrong with one.

    A line of theirs that is very long comes in pieces.
    """
    return table.lines if table.lines is not None else row_lines(table)


def row_lines(rows: Iterable[Row | BadRow]) -> Iterator[bytes]:
    """Yield the line of each row."""
    for row in rows:
        yield _line(row)


def _line(row: Row | BadRow) -> bytes:
    if isinstance(row, BadRow):
        known = {} if row.id is None else {"custom_id": row.id}
        return _encode({**known, ERROR_FIELD: row.message}) + b"\n"
    try:
        return _encode(row.document) + b"\n"
    except (UnicodeEncodeError, TypeError, OverflowError, ValueError, RecursionError):
        return _encode({ERROR_FIELD: f"Row {row.number} has a value that JSON does not have."}) + b"\n"


class LineStream(io.RawIOBase):
    """Lines as a stream that an HTTP client can read, without knowing its length."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._left = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        pieces = [self._left]
        length = len(self._left)
        while length < size or size < 0:
            line = next(self._lines, None)
            if line is None:
                break
            pieces.append(line)
            length += len(line)
        data = b"".join(pieces)
        if size < 0:
            size = length
        self._left = data[size:]
        return data[:size]
