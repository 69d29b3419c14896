"""Rows written as a file of CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.failure import USAGE_ERROR, Failure

Row = dict[str, Any]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


def check_suffix(path: str) -> None:
    """Fail unless the suffix of a file says which of the formats it has."""
    if Path(path).suffix.lower() not in (*DELIMITERS, *JSON_LINES):
        known = ", ".join((*DELIMITERS, *JSON_LINES))
        raise Failure(
            f"{path}: the name must end in one of {known}, which says what the file holds.", USAGE_ERROR
        )


def written_rows(path: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[bytes]:
    """Yield the lines of a file with these rows, in the format that the name of the file says."""
    suffix = Path(path).suffix.lower()
    if suffix not in DELIMITERS:
        for row in rows:
            yield _encoded(json.dumps(row, ensure_ascii=False) + "\n")
        return
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=DELIMITERS[suffix], lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        yield _taken(buffer)
        writer.writerow([_cell(row.get(name)) for name in columns])
    yield _taken(buffer)


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _taken(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return _encoded(text)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")
