"""CSV and TSV as RFC 4180 has them: lines end with CR LF, and a cell is quoted where it must be.

Cells hold exactly what the rows do, so that a table that is read and written again is the same. That includes text that
a spreadsheet takes for a formula; it never does that with the text cells of an xlsx file. The file begins with a byte
order mark, without which Excel does not read UTF-8.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import IO, Any

from bros_batch.documents.writers.cells import cell_text

BUFFER_CHARS = 256 * 1024


def write_csv(file: IO[bytes], columns: Sequence[str], rows: Iterable[Sequence[Any]], delimiter: str) -> int:
    """Write a table with the names of its columns in the first line. Returns the number of rows."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\r\n")
    file.write(codecs.BOM_UTF8)
    count = 0
    for row in chain((columns,), rows):
        writer.writerow([value if type(value) is str else cell_text(value) for value in row])
        count += 1
        if buffer.tell() >= BUFFER_CHARS:
            file.write(_taken(buffer))
    file.write(_taken(buffer))
    return count - 1


def _taken(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text.encode()
