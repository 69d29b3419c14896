"""JSON lines: one object per line, which is a row. Empty lines are no rows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, cast

from bros_batch.documents.json_object import json_object
from bros_batch.documents.readers.decoded_text import DecodedText
from bros_batch.documents.readers.table import BadRow, Row, Table
from bros_batch.documents.readers.text_encoding import UTF8
from bros_batch.request_error import RequestError

MAX_LINE_BYTES = 64 * 1024**2
PIECE_BYTES = 1024**2


def json_lines_table(name: str, stream: BinaryIO, encoding: str) -> Table:
    """Open a file of JSON lines, which begins after its byte order mark."""
    notes = []
    if encoding != UTF8:
        stream = cast("BinaryIO", io.BufferedReader(_InUtf8(stream, encoding), PIECE_BYTES))
        notes.append(f"Its text is read as {encoding.upper()}.")
    return Table(name, "jsonl", None, _rows(stream), _lines(stream), notes)


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines that are not empty with their ends; one that is very long in pieces."""
    starts = True
    while line := stream.readline(PIECE_BYTES):
        if not starts or not line.isspace():
            yield line
        starts = line.endswith(b"\n")


def _rows(stream: BinaryIO) -> Iterator[Row | BadRow]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES):
        stripped = line.strip(b" \t\r\n")
        if not stripped:
            continue
        number += 1
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(PIECE_BYTES)
            yield BadRow(number, f"Row {number} is longer than {MAX_LINE_BYTES:,} bytes.")
            continue
        try:
            yield Row(number, json_object(stripped))
        except RequestError as error:
            yield BadRow(number, f"Row {number}: {error.message}")


class _InUtf8(io.RawIOBase):
    """A text in another encoding, as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._pieces = DecodedText(stream, encoding).pieces()
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece.encode(errors="replace"))
        data = self._left[: len(buffer)]
        buffer[: len(data)] = data
        self._left = self._left[len(data) :]
        return len(data)
