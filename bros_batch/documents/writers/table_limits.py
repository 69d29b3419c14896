"""What the formats of tables cannot hold."""

from __future__ import annotations

MAX_EXCEL_ROWS = 1_048_575  # and the names of the columns
MAX_EXCEL_COLUMNS = 16_384
MAX_EXCEL_CELL_CHARS = 32_767


class UnwritableTable(Exception):
    """A table that a format cannot hold. The message is one sentence with a way out."""


def check_num_rows(kind: str, num_rows: int) -> None:
    """Raise UnwritableTable if a table has more rows than a file of this format can hold."""
    if kind == "xlsx" and num_rows > MAX_EXCEL_ROWS:
        raise UnwritableTable(
            f"A sheet of Excel has room for {MAX_EXCEL_ROWS:,} rows, and these are {num_rows:,}; "
            "write to a .csv or .parquet file instead."
        )
