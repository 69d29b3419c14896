"""Writing a table to a file in the format that is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import IO, Any

from bros_batch.documents.writers.table_limits import UnwritableTable

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
}

Rows = Callable[[], Iterable[Sequence[Any]]]


def format_of(path: str) -> str | None:
    """Return the format that the suffix of a file stands for, or None."""
    return FORMATS.get(PurePath(path).suffix.lower())


def check_library(kind: str) -> None:
    """Raise UnwritableTable if the library that writes a format is not installed."""
    if kind == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UnwritableTable(
            "To write .parquet files, install pyarrow: pip install 'bros-batch[tables]'; .csv and .xlsx need nothing."
        )


def write_table(
    kind: str,
    file: IO[bytes],
    columns: Sequence[str],
    rows: Rows,
    types: Sequence[str | None] = (),
    title: str = "",
) -> int:
    """Write a table to a file that is open for writing and reading. Returns the number of rows.

    A row is a sequence of values in the order of the columns. They are values of JSON; `types` says which types of
    `column_types` the columns have, where it is known, and formats that have these types write them. A sheet is
    named after the `title`. `rows` may be called more than once, and returns the rows from the beginning. Raises
    UnwritableTable.
    """
    types = types or [None] * len(columns)
    if kind in ("csv", "tsv"):
        from bros_batch.documents.writers.csv_writer import write_csv

        return write_csv(file, columns, rows(), "," if kind == "csv" else "\t")
    if kind == "jsonl":
        from bros_batch.documents.writers.json_lines_writer import write_json_lines

        return write_json_lines(file, columns, rows())
    if kind == "parquet":
        from bros_batch.documents.writers.parquet_writer import write_parquet

        return write_parquet(file, columns, rows, types)
    if kind == "xlsx":
        from bros_batch.documents.writers.excel_writer import write_excel

        return write_excel(file, columns, rows(), types, title)
    raise ValueError(f"{kind!r} is not a format of tables")
