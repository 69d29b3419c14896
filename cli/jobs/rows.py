"""Tables as files: rows of CSV, TSV or JSON lines, read one by one and written with more columns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bros_batch.request_error import RequestError
from cli.failure import USAGE_ERROR, Failure

Row = dict[str, Any]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
MAX_CELL_CHARS = 16 * 1024**2


def check_suffix(path: str) -> None:
    """Fail unless the suffix of a file says which of the formats it has."""
    if Path(path).suffix.lower() not in (*DELIMITERS, *JSON_LINES):
        known = ", ".join((*DELIMITERS, *JSON_LINES))
        raise Failure(
            f"{path}: the name must end in one of {known}, which says what the file holds.", USAGE_ERROR
        )


def columns_of(path: str) -> list[str]:
    """Return the names of the columns; of JSON lines, the fields of the first."""
    if Path(path).suffix.lower() not in DELIMITERS:
        return list(next((row for row in read_rows(path) if isinstance(row, dict)), ()))
    with _opened(path) as file:
        names = next(csv.reader(file, delimiter=DELIMITERS[Path(path).suffix.lower()]), [])
    if not names:
        raise Failure(f"{path} is empty; its first line must name the columns.", USAGE_ERROR)
    if len(set(names)) < len(names):
        raise Failure(f"{path} has two columns of the same name in its first line.", USAGE_ERROR)
    return names


def read_rows(path: str) -> Iterator[Row | RequestError]:
    """Yield the rows of a file, or for a row that cannot be read what is wrong with it. Empty lines are no rows."""
    suffix = Path(path).suffix.lower()
    with _opened(path) as file:
        if suffix in DELIMITERS:
            csv.field_size_limit(MAX_CELL_CHARS)
            reader = csv.DictReader(file, delimiter=DELIMITERS[suffix], restkey="", restval="")
            try:
                for number, row in enumerate(reader, start=1):
                    if "" in row and isinstance(row[""], list):
                        yield RequestError(f"Row {number} has more cells than the first line names.")
                    else:
                        yield row
            except csv.Error as error:
                raise Failure(f"{path}, line {reader.line_num}: {error}.", USAGE_ERROR) from None
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _object(line, number)


def _object(line: str, number: int) -> Row | RequestError:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return RequestError(f"Line {number}: this is not valid JSON: {error}.")
    return value if isinstance(value, dict) else RequestError(f"Line {number}: this is not a JSON object.")


def _opened(path: str) -> io.TextIOWrapper:
    try:
        return Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}.", USAGE_ERROR) from None


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
