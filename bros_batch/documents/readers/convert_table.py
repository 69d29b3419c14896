"""A program that writes a table as JSON lines.

Its arguments are a name, two paths, the most bytes to write, and the sheet of a workbook, which may be empty.

It is a process of its own, so that a file that crashes a library, or takes long to read, does nothing to a server.
Each line on stdout is a JSON object: `{"rows": N}` while it reads, and at last a Converted or a Problem.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from bros_batch.documents.readers.open_table import open_table
from bros_batch.documents.readers.table import BadRow, Row, Table, UnreadableTable
from bros_batch.documents.readers.table_lines import row_lines

REPORT_S = 0.5
NICENESS = 10


class Converted(msgspec.Struct, tag="converted"):
    """What is known about a table when all of it has been written. `columns` is None if only its rows say them."""

    name: str
    format: str
    columns: list[str] | None
    id_field: str | None
    notes: list[str]
    types: dict[str, str]
    sheets: list[str]
    rows: int
    bad_rows: int
    first_problem: str | None
    size_bytes: int
    sha256: str


class Problem(msgspec.Struct, tag="problem"):
    """Why a table cannot be written, in one sentence."""

    message: str
    is_disk_full: bool = False


class BadRows:
    """Counts the rows that could not be read, on their way."""

    def __init__(self) -> None:
        self.count = 0
        self.first: str | None = None

    def watched(self, rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
        for row in rows:
            if isinstance(row, BadRow):
                self.count += 1
                self.first = self.first or row.message
            yield row


def convert(name: str, source: Path, target: Path, limit_bytes: int, sheet: str = "") -> Converted | Problem:
    """Write the table in `source`, which its user calls `name`, as JSON lines to `target`."""
    try:
        with (
            source.open("rb") as file,
            target.open("xb") as out,
            open_table(file, name, sheet=sheet) as table,
        ):
            return _written(table, out, limit_bytes)
    except UnreadableTable as error:
        return Problem(str(error))
    except MemoryError:
        return Problem(f"{name} needs more memory than there is; split it, or save it as CSV.")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Problem("The disk is full.", is_disk_full=True)
        raise


def _written(table: Table, out: BinaryIO, limit_bytes: int) -> Converted | Problem:
    bad = BadRows()
    digest = hashlib.sha256()
    size = rows = 0
    ends_line = True
    report_at = time.monotonic() + REPORT_S
    lines = table.lines if table.lines is not None else row_lines(bad.watched(table))
    for piece in lines:
        size += len(piece)
        if size > limit_bytes:
            return Problem(
                f"{table.name} has more than {limit_bytes} bytes as JSON lines, which is the limit."
            )
        out.write(piece)
        digest.update(piece)
        ends_line = piece.endswith(b"\n")
        rows += ends_line
        if time.monotonic() > report_at:
            report_at = time.monotonic() + REPORT_S
            _print({"rows": rows})
    rows += not ends_line
    if not rows:
        return Problem(f"{table.name} has no rows.")
    if rows == bad.count:
        return Problem(f"No row of {table.name} can be read. {bad.first}")
    out.flush()
    os.fsync(out.fileno())
    return Converted(
        table.name,
        table.format,
        table.columns,
        table.id_field,
        table.notes,
        table.types,
        table.sheets,
        rows,
        bad.count,
        bad.first,
        size,
        digest.hexdigest(),
    )


def _print(value: object) -> None:
    """Ends the program if nobody reads any more: then the server is gone."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    os.nice(NICENESS)
    _name, _source, _target, _limit, _sheet = sys.argv[1:]
    _print(convert(_name, Path(_source), Path(_target), int(_limit), _sheet))
