"""Sheets of Excel. Numbers, truth values and times keep their types, texts are text, and anything else is JSON."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

from bros_batch.documents.column_types import reader_of
from bros_batch.documents.writers.cells import cell_text
from bros_batch.documents.writers.table_limits import (
    MAX_EXCEL_CELL_CHARS,
    MAX_EXCEL_COLUMNS,
    UnwritableTable,
    check_num_rows,
)

if TYPE_CHECKING:
    import xlsxwriter
    from xlsxwriter.format import Format
    from xlsxwriter.worksheet import Worksheet

DEFAULT_SHEET = "answers"
MAX_SHEET_NAME_UNITS = 31  # of UTF-16
# Excel keeps a name for the history of a shared workbook.
RESERVED_SHEETS = ("", "history")
_FORBIDDEN = re.compile(r"[\x00-\x1f\[\]:*?/\\]")
# How the values of a type are shown, and how wide their columns are in characters.
FORMATS = {
    datetime.date: ("yyyy-mm-dd", 11),
    datetime.datetime: ("yyyy-mm-dd hh:mm:ss", 19),
    datetime.time: ("hh:mm:ss", 9),
    datetime.timedelta: ("[h]:mm:ss", 11),
}
FIRST_YEAR = 1900
MAX_DIGITS = 15  # of a decimal that is a number in Excel
# Excel computes with 64-bit floats. A whole number that is larger than that keeps its digits as text.
MAX_WHOLE_NUMBER = 2**53


class _ExactFloat(float):
    """A number that is written with all digits that it needs, where the library would write 16 of 17."""

    def __format__(self, spec: str) -> str:
        return repr(float(self))


def write_excel(
    file: IO[bytes],
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    types: Sequence[str | None],
    title: str = "",
) -> int:
    """Write a table with columns of these types to the only sheet of a workbook. Returns the number of rows.

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
        number = _fill(workbook, workbook.add_worksheet(sheet_name(title)), columns, rows, types)
    finally:
        # Also after an error: the workbook has a temporary file.
        try:
            workbook.close()
        except xlsxwriter.exceptions.FileCreateError as error:
            raise (error.args[0] if isinstance(error.args[0], OSError) else error) from None
    return number


def sheet_name(title: str) -> str:
    """A name that Excel accepts for a sheet and that is as close to a title as possible."""
    cut = title.encode("utf-16-le", "replace")[: 2 * MAX_SHEET_NAME_UNITS].decode("utf-16-le", "ignore")
    name = _FORBIDDEN.sub(" ", cut).strip(" '")
    return DEFAULT_SHEET if name.lower() in RESERVED_SHEETS else name


def _fill(
    workbook: xlsxwriter.Workbook,
    sheet: Worksheet,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    types: Sequence[str | None],
) -> int:
    typed = _TypedCells(workbook, sheet, types)
    sheet.freeze_panes(1, 0)
    bold = workbook.add_format({"bold": True})
    for column, name in enumerate(columns):
        sheet.write_string(0, column, _fitting(name, 0, name), bold)
    number = 0
    for number, row in enumerate(rows, start=1):
        check_num_rows("xlsx", number)
        for column, value in enumerate(row):
            if value is None or value == "" or typed.write(number, column, value):
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


class _TypedCells:
    """Writes dates and times into the columns that have them."""

    def __init__(self, workbook: xlsxwriter.Workbook, sheet: Worksheet, types: Sequence[str | None]) -> None:
        self._sheet = sheet
        self._readers = {
            column: read for column, name in enumerate(types) if (read := reader_of(name)) is not None
        }
        self._formats: dict[type, Format] = {
            kind: workbook.add_format({"num_format": shown}) for kind, (shown, _) in FORMATS.items()
        }
        self._widths: dict[int, int] = {}

    def write(self, row: int, column: int, value: Any) -> bool:
        """Write a value of a typed column. Returns False for one that is written like those of other columns."""
        read = self._readers.get(column)
        if read is None or type(value) is not str:
            return False
        try:
            found = read(value)
        except ValueError:
            return False
        if type(found) is Decimal:
            if len(found.as_tuple().digits) > MAX_DIGITS:
                return False
            self._sheet.write_number(row, column, _ExactFloat(found))
            return True
        # Excel knows no time zones, and no days before its first.
        if getattr(found, "tzinfo", None) is not None or getattr(found, "year", FIRST_YEAR) < FIRST_YEAR:
            return False
        if type(found) is datetime.timedelta and found < datetime.timedelta():
            return False
        width = FORMATS[type(found)][1]
        if self._widths.get(column, 0) < width:
            self._widths[column] = width
            self._sheet.set_column(column, column, width)
        self._sheet.write_datetime(row, column, found, self._formats[type(found)])
        return True


def _fitting(text: str, row: int, column: str) -> str:
    if len(text) > MAX_EXCEL_CELL_CHARS:
        raise UnwritableTable(
            f"Row {row}, column {column[:80]!r} has {len(text):,} characters, and a cell of Excel has room for "
            f"{MAX_EXCEL_CELL_CHARS:,}; write to a .csv or .parquet file, or leave the column out with --select."
        )
    return text
