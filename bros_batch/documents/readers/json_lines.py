"""JSON lines: one object per line, which is a row. Empty lines are no rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from bros_batch.documents.json_object import json_object
from bros_batch.documents.readers.decoded_text import DecodedText
from bros_batch.documents.readers.table import BadRow, Row, Table
from bros_batch.documents.readers.text_encoding import UTF8
from bros_batch.request_error import RequestError


def json_lines_table(name: str, stream: BinaryIO, encoding: str) -> Table:
    """Open a file of JSON lines, which begins after its byte order mark."""
    lines = json_line_bytes(stream, encoding)
    notes = [] if encoding == UTF8 else [f"Its text is read as {encoding.upper()}."]
    return Table(name, "jsonl", None, _rows(lines), notes)


def json_line_bytes(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    """Yield the lines in UTF-8, which JSON lines usually are in."""
    for line in DecodedText(stream, encoding).lines():
        yield line.encode(errors="surrogateescape")


def _rows(lines: Iterator[bytes]) -> Iterator[Row | BadRow]:
    number = 0
    for line in lines:
        stripped = line.strip(b" \t\r\n")
        if not stripped:
            continue
        number += 1
        try:
            yield Row(number, json_object(stripped))
        except RequestError as error:
            yield BadRow(number, f"Row {number}: {error.message}")
