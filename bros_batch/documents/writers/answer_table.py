"""The rows of a job as a table: a function, and a program for it.

As a process of its own, it does not take the time of a server. Its arguments are a format and the path of the table. On
stdin comes a line of JSON with what is known of the columns, then one for each row, as the API has it. It prints a
Written or an Unwritable.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from bros_batch.documents.answer_columns import AnswerColumns, KnownColumns
from bros_batch.documents.writers.table_limits import UnwritableTable
from bros_batch.documents.writers.write_table import write_table

NICENESS = 10
Choice = Callable[[Sequence[str]], Sequence[str]]


class Written(msgspec.Struct, tag="written"):
    """The table is complete."""

    rows: int


class Unwritable(msgspec.Struct, tag="unwritable"):
    """Why there is no table, in one sentence."""

    message: str
    is_disk_full: bool = False


def write_answer_table(
    kind: str,
    file: IO[bytes],
    known: KnownColumns,
    lines: Iterable[bytes],
    spool: IO[bytes],
    choose: Choice | None = None,
) -> int:
    """Write the rows of a job, and return their number. `choose` returns the columns that are wanted out of all.

    All rows are put into `spool` first, because the last one may have a column that the others have not. Raises
    UnwritableTable for a table that the format cannot hold.
    """
    columns = AnswerColumns(known)
    decode = msgspec.json.Decoder().decode
    for line in lines:
        columns.see(decode(line))
        spool.write(line)
    names, types = columns.names, columns.types
    chosen = names if choose is None else choose(names)
    places = [names.index(name) for name in chosen]

    def rows() -> Iterator[Sequence[Any]]:
        spool.seek(0)
        values = map(columns.values, map(decode, spool))
        return values if chosen is names else ([row[place] for place in places] for row in values)

    return write_table(kind, file, chosen, rows, [types[place] for place in places], known.title)


def main(kind: str, path: str) -> Written | Unwritable:
    """Write the rows on stdin to a new file."""
    target, lines = Path(path), sys.stdin.buffer
    try:
        with tempfile.TemporaryFile(dir=target.parent) as spool, target.open("x+b") as file:
            known = msgspec.json.decode(lines.readline(), type=KnownColumns)
            return Written(write_answer_table(kind, file, known, lines, spool))
    except UnwritableTable as error:
        return Unwritable(str(error))
    except MemoryError:
        return Unwritable("The table needs more memory than there is.")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Unwritable("The disk is full.", is_disk_full=True)
        raise


if __name__ == "__main__":
    os.nice(NICENESS)
    sys.stdout.buffer.write(msgspec.json.encode(main(*sys.argv[1:])))
