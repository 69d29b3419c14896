"""Sheets of Excel and OpenDocument: the first row below a title names the columns, and cells keep their types."""

from __future__ import annotations

import datetime
import itertools
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree import ElementTree

from bros_batch.document_fields import NO_FIELD, found_field
from bros_batch.documents.readers.column_names import column_names
from bros_batch.documents.readers.table import BadRow, Row, Table, UnreadableTable
from bros_batch.documents.readers.zip_archive import check_sizes

if TYPE_CHECKING:
    from python_calamine import CalamineSheet, CalamineWorkbook

# The library keeps a sheet in memory, with 32 bytes for each cell of the rectangle around all cells that have a value.
MAX_CELLS = 32_000_000
MAX_ERROR_CELLS = 100_000
MAX_TITLE_ROWS = 8  # above the names of the columns
_CELL = re.compile(rb'<c [^>]*?\br="([A-Z]{1,3})([0-9]{1,7})"([^>]*)>')
_ERROR_VALUE = re.compile(rb"(?:<f[^>]*>[^<]*</f>|<f[^>]*/>)?<v>(#[^<]{1,40})</v>")
# A cell with the formula that it has.
_OVERLAP_BYTES = 32 * 1024
# The types of cells that JSON does not have.
_TYPES: dict[type, str] = {
    datetime.datetime: "datetime",
    datetime.date: "date",
    datetime.time: "time",
    datetime.timedelta: "duration",
}
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


@dataclass(frozen=True, slots=True)
class SheetChoice:
    """Which sheet of a workbook to read: the one of this name, or else the first with rows that has all these fields.

    If none has them, it is the first with more than one row. An empty name is no name, and leaves out the note that
    says which sheet is read, for users who see the names of all sheets anyway.
    """

    name: str | None = None
    fields: tuple[str, ...] = ()


def excel_table(
    name: str, kind: str, file: BinaryIO, archive: zipfile.ZipFile | None, choice: SheetChoice
) -> Table:
    """Open the chosen sheet of a workbook."""
    import python_calamine as calamine

    scans: dict[str, _SheetScan] = {}
    if archive is not None:
        check_sizes(
            name, archive, lambda part: scans.setdefault(part, _SheetScan()).see if _is_sheet(part) else None
        )
        if any(scan.num_cells > MAX_CELLS for scan in scans.values()):
            raise UnreadableTable(f"{name} has a sheet with more than {MAX_CELLS:,} cells; save it as CSV.")
    try:
        file.seek(0)
        workbook = calamine.CalamineWorkbook.from_filelike(file)
        found = _sheet(name, workbook, choice.name or None)

        def opened(sheet: CalamineSheet) -> Table:
            errors = _errors_of(archive, sheet.name, scans) if kind == "xlsx" and archive is not None else {}
            return _table(name, kind, sheet, errors)

        table, read = opened(found), found.name
        if not choice.name and not _has(table, choice.fields):
            for each in workbook.sheet_names:
                if each == found.name:
                    continue
                # Nobody has asked for this sheet, so it may be one that cannot be read.
                with suppress(UnreadableTable, calamine.CalamineError):
                    sheet = workbook.get_sheet_by_name(each)
                    if sheet.height > 1 and _has(other := opened(sheet), choice.fields):
                        table, read = other, each
                        break
        others = [each for each in workbook.sheet_names if each != read]
        if others and choice.name is None:
            table.notes.insert(0, f"The sheet '{read}' is read; the others are: {', '.join(others[:10])}.")
        table.sheets = [read, *others]
        return table
    except calamine.PasswordError:
        raise UnreadableTable(f"{name} needs a password; save it without one.") from None
    except calamine.CalamineError as error:
        raise UnreadableTable(
            f"{name} is not a workbook that can be read ({error}); save it as CSV or xlsx."
        ) from None


def _has(table: Table, fields: Sequence[str]) -> bool:
    columns = dict.fromkeys(table.columns or ())
    return all(found_field(columns, each) is not NO_FIELD for each in fields)


def _is_sheet(part: str) -> bool:
    return part.startswith("xl/worksheets/") and part.endswith(".xml")


def _sheet(name: str, workbook: CalamineWorkbook, wanted: str | None) -> CalamineSheet:
    names = workbook.sheet_names
    if wanted is not None:
        if wanted not in names:
            raise UnreadableTable(f"{name} has no sheet '{wanted}'; its sheets are: {', '.join(names[:20])}.")
        return workbook.get_sheet_by_name(wanted)
    fallback = None
    for each in names:
        sheet = workbook.get_sheet_by_name(each)
        if sheet.height > 1:
            return sheet
        if sheet.height and fallback is None:
            fallback = sheet
    if fallback is None:
        raise UnreadableTable(f"{name} has no sheet with cells.")
    return fallback


def _table(name: str, kind: str, sheet: CalamineSheet, errors: dict[tuple[int, int], str]) -> Table:
    left = sheet.start[1] if sheet.start else 0
    rows = enumerate(sheet.iter_rows())
    first: list[tuple[int, list[str]]] = []  # the rows that are not empty, as texts
    for index, cells in rows:
        texts = [_text(_value(cell, errors.get((index, left + column)))) for column, cell in enumerate(cells)]
        if any(texts):
            first.append((index, texts))
            if len(first) > MAX_TITLE_ROWS + 1:
                break
    if not first:
        raise UnreadableTable(f"The sheet '{sheet.name}' of {name} is empty.")
    notes = []
    num_titles = _num_titles([texts for _, texts in first])
    if num_titles:
        title = next(filter(None, first[0][1]))[:60]
        what = "row is a title" if num_titles == 1 else f"{num_titles} rows are titles"
        notes.append(f"The first {what} and left out: '{title}'.")
    index, header = first[num_titles]
    while not header[-1]:
        header.pop()
    columns = column_names(header)
    # From the beginning again: the rows below the header are wanted as values.
    below = itertools.islice(enumerate(sheet.iter_rows()), index + 1, None)
    types: dict[str, str] = {}
    return Table(name, kind, columns, _rows(below, columns, left, errors, types), notes=notes, types=types)


def _num_titles(rows: list[list[str]]) -> int:
    """Return how many of the first rows are titles: one cell each, above two rows that have several.

    A table of one column, in which a cell went astray, has a single row with several.
    """
    widths = [sum(map(bool, row)) for row in rows]
    count = next((position for position, width in enumerate(widths) if width > 1), 0)
    return count if len(widths) > count + 1 and widths[count + 1] > 1 else 0


def _rows(
    rows: Iterator[tuple[int, Sequence[Any]]],
    columns: list[str],
    left: int,
    errors: dict[tuple[int, int], str],
    types: dict[str, str],
) -> Iterator[Row | BadRow]:
    """Yield the rows below the header, and put the types of columns with dates and times into `types`."""
    width = len(columns)
    number = 0
    for index, cells in rows:
        values = [_value(cell, None) for cell in cells]
        for name, cell in zip(columns, cells, strict=False):
            if type(cell) in _TYPES:
                _note_type(types, name, _TYPES[type(cell)])
        if errors:
            for column in range(len(values)):
                if (index, left + column) in errors:
                    values[column] = errors[index, left + column]
        if all(value is None for value in values):
            continue
        number += 1
        extra = next((column for column in range(width, len(values)) if values[column] is not None), None)
        if extra is not None:
            place = f"{_letters(left + extra)}{index + 1}"
            yield BadRow(
                number,
                f"Row {number}: the cell {place} is in a column that has no name; name the column, or empty the cell.",
            )
        else:
            yield Row(number, dict(zip(columns, values, strict=False)))


def _note_type(types: dict[str, str], column: str, kind: str) -> None:
    known = types.setdefault(column, kind)
    if known != kind:
        # A day without a time stands for its midnight. No other two have a type in common.
        types[column] = "datetime" if {known, kind} == {"date", "datetime"} else "text"


def _value(cell: Any, error: str | None) -> Any:
    """Return the value of a cell for JSON: dates as ISO 8601, empty cells as None."""
    if error is not None:
        return error
    if cell == "" and isinstance(cell, str):
        return None
    if isinstance(cell, float):
        return int(cell) if cell.is_integer() and abs(cell) <= 2**53 else cell
    if isinstance(cell, datetime.datetime | datetime.date | datetime.time):
        return cell.isoformat()
    if isinstance(cell, datetime.timedelta):
        return str(cell)
    return cell


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _letters(column: int) -> str:
    """Return the letters of a column, from 0: A, B, ..., Z, AA."""
    letters = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


class _SheetScan:
    """Finds in the XML of a sheet how large it is, and the errors of formulas, which the library leaves out."""

    def __init__(self) -> None:
        self.errors: dict[tuple[int, int], str] = {}
        self._rest = b""
        self._rows: tuple[int, int] | None = None
        self._columns: tuple[int, int] | None = None

    @property
    def num_cells(self) -> int:
        """The number of cells in the rectangle around all cells."""
        if self._rows is None or self._columns is None:
            return 0
        return (self._rows[1] - self._rows[0] + 1) * (self._columns[1] - self._columns[0] + 1)

    def see(self, data: bytes) -> None:
        """Look at the next piece of the XML."""
        data = self._rest + data
        lowest, highest = self._rows or (1 << 30, 0)
        letters = set()
        for match in _CELL.finditer(data):
            row = int(match[2])
            lowest, highest = min(lowest, row), max(highest, row)
            letters.add(match[1])
            if b't="e"' in match[0]:
                value = _ERROR_VALUE.match(data, match.end())
                if value is not None and len(self.errors) < MAX_ERROR_CELLS:
                    self.errors[row - 1, _column(match[1])] = value[1].decode(errors="replace")
        if letters:
            columns = [*map(_column, letters), *(self._columns or ())]
            self._rows, self._columns = (lowest, highest), (min(columns), max(columns))
        self._rest = data[-_OVERLAP_BYTES:]  # cells that are seen twice do no harm


def _column(letters: bytes) -> int:
    column = 0
    for letter in letters:
        column = column * 26 + letter - ord("A") + 1
    return column - 1


def _errors_of(
    archive: zipfile.ZipFile, sheet: str, scans: dict[str, _SheetScan]
) -> dict[tuple[int, int], str]:
    """Return the errors of a sheet. Which part of the archive it is, the workbook and its relations say."""
    if not any(scan.errors for scan in scans.values()):
        return {}
    try:
        book = ElementTree.fromstring(archive.read("xl/workbook.xml"))
        relations = ElementTree.fromstring(archive.read("xl/_rels/workbook.xml.rels"))
    except (ElementTree.ParseError, KeyError, OSError):
        return {}
    targets = {each.get("Id"): each.get("Target", "") for each in relations}
    for each in book.iter():
        if each.tag.endswith("}sheet") and each.get("name") == sheet:
            target = targets.get(each.get(_RELATION), "").removeprefix("/xl/")
            return scans[f"xl/{target}"].errors if f"xl/{target}" in scans else {}
    return {}
