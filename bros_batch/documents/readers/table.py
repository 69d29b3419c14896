"""What every reader returns: a table whose rows are read once, in order, and are never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgspec


class UnreadableTable(Exception):
    """The source holds no table that can be read. The message is one sentence with the format and a way out."""


class Row(msgspec.Struct, frozen=True):
    """A row with its number in the table, from 1. A Struct, because a dataclass takes four times as long to make."""

    number: int
    document: dict[str, Any]


class BadRow(msgspec.Struct, frozen=True):
    """A row that could not be read. The message names the row, and the column or page where it is known.

    `id` is what the table's `id_field` has for it, if that is known.
    """

    number: int
    message: str
    id: str | None = None


@dataclass(slots=True)
class Table:
    """A table that is open for reading. Iterating over it raises UnreadableTable where a damaged file ends.

    `columns` is None if only the rows themselves say what their columns are. `lines` are the rows of JSON lines as they
    are written, which one reads instead of the rows. `notes` are sentences for the user about how the source was read.
    `types` are those of `column_types`, by the names of columns, where they are known; those of a sheet are known once
    it has been read. `sheets` are those of the workbook, that of the table first. `id_field` is the column that
    identifies a row, if the format has one. `size_bytes` is None if it is not known.
    """

    name: str
    format: str
    columns: list[str] | None
    rows: Iterator[Row | BadRow]
    lines: Iterator[bytes] | None = None
    notes: list[str] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    sheets: list[str] = field(default_factory=list)
    id_field: str | None = None
    size_bytes: int | None = None
    bytes_read: Callable[[], int] = lambda: 0
    close: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[Row | BadRow]:
        return self.rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
