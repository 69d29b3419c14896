"""Opens a table. Its format is found by content; its name only decides between formats that look alike."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from bros_batch.documents.readers.csv_table import csv_table
from bros_batch.documents.readers.json_lines import json_lines_table
from bros_batch.documents.readers.table import Table, UnreadableTable
from bros_batch.documents.readers.text_encoding import encoding_of

HEAD_BYTES = 256 * 1024
JSON_LINES = (".jsonl", ".ndjson")


def open_table(source: str | Path | BinaryIO, name: str | None = None) -> Table:
    """Open a file as a table; a stream may have a name. Raises UnreadableTable, and OSError for a missing file."""
    file = io.BufferedReader(io.FileIO(source)) if isinstance(source, str | Path) else source
    if isinstance(source, str | Path):
        name = name or str(source)
    try:
        table = _opened(name or "The table", _Headed(file))
    except BaseException:
        file.close()
        raise
    table.close = file.close
    return table


def _opened(name: str, stream: _Headed) -> Table:
    found = encoding_of(stream.head, len(stream.head) < HEAD_BYTES)
    if found is None:
        raise UnreadableTable(
            f"{name} is not text, and not a format that can be read; save it as CSV or JSON lines."
        )
    encoding, mark = found
    stream.read(mark)
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in JSON_LINES or (suffix != ".csv" and stream.head[mark:].lstrip().startswith(b"{")):
        return json_lines_table(name, stream, encoding)
    return csv_table(name, stream, encoding, "\t" if suffix in (".tsv", ".tab") else ",")


class _Headed(io.RawIOBase, BinaryIO):
    """A stream whose head can be seen before it is read."""

    def __init__(self, stream: BinaryIO) -> None:
        pieces = []
        size = 0
        while size < HEAD_BYTES and (piece := stream.read(HEAD_BYTES - size)):
            pieces.append(piece)
            size += len(piece)
        self.head = b"".join(pieces)
        self._left = memoryview(self.head)
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            return self._stream.read(size)
        end = len(self._left) if size < 0 else size
        piece, self._left = bytes(self._left[:end]), self._left[end:]
        return piece
