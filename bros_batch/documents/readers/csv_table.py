"""CSV and TSV: the encoding and the dialect are detected, and cells stay text, exactly as written."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from bros_batch.documents.readers.column_names import column_names
from bros_batch.documents.readers.csv_dialect import dialect_of, named_delimiter
from bros_batch.documents.readers.csv_rows import NO_DELIMITER, Dialect, csv_rows
from bros_batch.documents.readers.decoded_text import DecodedText
from bros_batch.documents.readers.table import BadRow, Row, Table, UnreadableTable
from bros_batch.documents.readers.text_encoding import UTF8

SAMPLE_LINES = 1000
SAMPLE_CHARS = 1024**2
NAMES = {"\t": "tabs", ";": "semicolons", "|": "vertical bars", ",": "commas"}


def csv_table(name: str, stream: BinaryIO, encoding: str, preferred: str) -> Table:
    """Open a CSV file, which begins after its byte order mark. The first row names the columns."""
    text = DecodedText(stream, encoding)
    lines = text.lines()
    sample, is_whole = _sample(lines)
    delimiter = named_delimiter(sample[0]) if sample else None
    if delimiter is not None:
        del sample[0]
        dialect = Dialect(delimiter)
    else:
        dialect = dialect_of(sample if is_whole else sample[:-1] or sample, preferred)
    rows = csv_rows(chain(sample, lines), dialect)
    header = next(rows, None)
    if header is None:
        raise UnreadableTable(f"{name} is empty; its first line must name the columns.")
    if isinstance(header, str):
        raise UnreadableTable(f"The first line of {name}, which names the columns, is damaged: {header}")
    columns = column_names(header)
    notes = []
    if dialect.delimiter not in (preferred, NO_DELIMITER):
        notes.append(f"Its cells are separated by {NAMES.get(dialect.delimiter, repr(dialect.delimiter))}.")
    if encoding != UTF8:
        notes.append(f"Its text is read as {encoding.upper()}.")
    return Table(
        name, "tsv" if dialect.delimiter == "\t" else "csv", columns, _rows(rows, columns, text), notes=notes
    )


def _sample(lines: Iterator[str]) -> tuple[list[str], bool]:
    """Return the first lines, and whether there are no others."""
    sample: list[str] = []
    size = 0
    for line in lines:
        sample.append(line)
        size += len(line)
        if len(sample) == SAMPLE_LINES or size > SAMPLE_CHARS:
            return sample, False
    return sample, True


def _rows(rows: Iterator[list[str] | str], columns: list[str], text: DecodedText) -> Iterator[Row | BadRow]:
    width = len(columns)
    number = 0
    for cells in rows:
        if isinstance(cells, str):
            number += 1
            yield BadRow(number, f"Row {number}: {cells}")
        elif len(cells) == width:
            number += 1
            if text.has_surrogates and (bad := _undecoded(cells)) is not None:
                yield BadRow(
                    number, f"Row {number}, column '{columns[bad]}': the text has bytes that are not text."
                )
            else:
                yield Row(number, dict(zip(columns, cells, strict=True)))
        elif len(cells) > 1 or cells[0].strip():  # a line of spaces is an empty line
            number += 1
            yield BadRow(number, f"Row {number} has {_cells(len(cells))}, but the table has {width} columns.")


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _undecoded(cells: list[str]) -> int | None:
    """Return the first cell with a surrogate."""
    for index, cell in enumerate(cells):
        try:
            cell.encode()
        except UnicodeEncodeError:
            return index
    return None
