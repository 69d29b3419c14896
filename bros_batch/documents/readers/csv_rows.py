"""The cells of each row of a CSV file. A row that breaks the rules of quotation costs no other row."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_CELL_CHARS = 16 * 1024**2
# Separates the cells of a table that has one column: it is no character, so no text contains it.
NO_DELIMITER = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How cells are separated and quoted. `escape` is a backslash, or None if quotation marks are doubled."""

    delimiter: str
    escape: str | None = None
    skips_space: bool = False


def csv_rows(lines: Iterable[str], dialect: Dialect) -> Iterator[list[str] | str]:
    """Yield the cells of each row; for a row that cannot be parsed, what is wrong with it. Empty lines are no rows.

    After such a row, the lines that its open quotation mark had swallowed are read again as rows of their own.
    """
    csv.field_size_limit(MAX_CELL_CHARS)
    source = iter(lines)
    again: deque[str] = deque()
    current: list[str] = []  # the lines of the row that is being parsed

    def feed() -> Iterator[str]:
        while True:
            line = again.popleft() if again else next(source, None)
            if line is None:
                return
            current.append(line)
            yield line

    while True:
        reader = csv.reader(
            feed(),
            delimiter=dialect.delimiter,
            doublequote=dialect.escape is None,
            escapechar=dialect.escape,
            skipinitialspace=dialect.skips_space,
            strict=True,
        )
        try:
            for cells in reader:
                current.clear()
                if cells:
                    yield cells
            return
        except csv.Error as error:
            yield _problem(str(error), len(current))
            again.extendleft(reversed(current[1:]))
            current.clear()


def _problem(message: str, num_lines: int) -> str:
    if "end of data" in message or (num_lines > 1 and "field limit" in message):
        return "a quotation mark opens a cell, and none closes it."
    if "field limit" in message:
        return f"a cell has more than {MAX_CELL_CHARS:,} characters."
    return (
        "text follows the quotation mark that closes a cell; quotation marks within a cell must be doubled."
    )
