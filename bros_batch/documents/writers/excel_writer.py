"""Sheets of Excel. Texts are always text, numbers and truth values keep their types, and anything else is JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any

from bros_batch.documents.writers.cells import cell_text
from bros_batch.documents.writers.table_limits import (
    MAX_EXCEL_CELL_CHARS,
    MAX_EXCEL_COLUMNS,
    UnwritableTable,
    check_num_rows,
)

if TYPE_CHECKING:
    import xlsxwriter

# Excel computes with 64-bit floats. A whole number that is larger than that keeps its digits as text.
MAX_WHOLE_NUMBER = 2**53


class _ExactFloat(float):
    """A number that is written with all digits that it needs, where the library would write 16 of 17."""

    def __format__(self, spec: str) -> str:
        return repr(float(self))


def write_excel(file: IO[bytes], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Write a table to the only sheet of a workbook. Returns the number of rows.

    Raises UnwritableTable for a table that is wider, longer or has longer cells than Excel's.
    """
    import xlsxwriter

    if len(columns) > MAX_EXCEL_COLUMNS:
        raise UnwritableTable(
            f"A sheet of Excel has room for {MAX_EXCEL_COLUMNS:,} columns, and these are {len(columns):,}; "
            "choose some of them with --select."
        )
    options = {
        "constant_memory": True,
        "strings_to_numbers": False,
        "strings_to_formulas": False,
        "strings_to_urls": False,
    }
    workbook = xlsxwriter.Workbook(file, options)
    try:
        number = _fill(workbook, columns, rows)
    finally:
        # Also after an error: the workbook has a temporary file.
        try:
            workbook.close()
        except xlsxwriter.exceptions.FileCreateError as error:
            raise (error.args[0] if isinstance(error.args[0], OSError) else error) from None
    return number


def _fill(workbook: xlsxwriter.Workbook, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    sheet = workbook.add_worksheet()
    sheet.freeze_panes(1, 0)
    bold = workbook.add_format({"bold": True})
    for column, name in enumerate(columns):
        sheet.write_string(0, column, _fitting(name, 0, name), bold)
    number = 0
    for number, row in enumerate(rows, start=1):
        check_num_rows("xlsx", number)
        for column, value in enumerate(row):
            if value is None or value == "":
                continue
            if isinstance(value, bool):
                sheet.write_boolean(number, column, value)
            elif isinstance(value, float):
                sheet.write_number(number, column, _ExactFloat(value))
            elif isinstance(value, int) and abs(value) <= MAX_WHOLE_NUMBER:
                sheet.write_number(number, column, value)
            else:
                sheet.write_string(number, column, _fitting(cell_text(value), number, columns[column]))
    return number


def _fitting(text: str, row: int, column: str) -> str:
    if len(text) > MAX_EXCEL_CELL_CHARS:
        raise UnwritableTable(
            f"Row {row}, column {column[:80]!r} has {len(text):,} characters, and a cell of Excel has room for "
            f"{MAX_EXCEL_CELL_CHARS:,}; write to a .csv or .parquet file, or leave the column out with --select."
        )
    return text
