"""The dialect of a CSV file from its beginning."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from bros_batch.documents.readers.csv_rows import NO_DELIMITER, Dialect, csv_rows

DELIMITERS = (",", "\t", ";", "|")
SAMPLE_ROWS = 200


def named_delimiter(line: str) -> str | None:
    """Return the delimiter that the first line of a file of Excel names, such as `sep=;`."""
    text = line.strip("\r\n").lower()
    return text[4] if text.startswith("sep=") and len(text) == 5 else None


def dialect_of(lines: list[str], preferred: str = ",") -> Dialect:
    """Return the dialect in which the most of these lines are rows with as many cells as the first.

    Of several such dialects it is the one with the most columns, then that with the preferred delimiter.
    """
    candidates = [preferred, *(each for each in DELIMITERS if each != preferred)]
    has_escapes = any('\\"' in line for line in lines)
    best, best_score = Dialect(NO_DELIMITER), (0.0, 0)
    for delimiter in candidates:
        for escape in (None, "\\") if has_escapes else (None,):
            dialect = Dialect(delimiter, escape)
            score = _score(_sampled(lines, dialect))
            if score > best_score:
                best, best_score = dialect, score
    spaced = replace(best, skips_space=True)
    return spaced if _quotes_after_spaces(lines, best, spaced) else best


def _sampled(lines: list[str], dialect: Dialect) -> list[list[str] | str]:
    return list(islice(csv_rows(lines, dialect), SAMPLE_ROWS))


def _score(rows: list[list[str] | str]) -> tuple[float, int]:
    """Return the share of regular rows, and the number of columns."""
    width = len(rows[0]) if rows and isinstance(rows[0], list) else 0
    if width < 2:
        return 0.0, 0
    regular = sum(isinstance(row, list) and len(row) == width for row in rows)
    return regular / len(rows), width


def _quotes_after_spaces(lines: list[str], plain: Dialect, spaced: Dialect) -> bool:
    """Whether quotation marks come after a delimiter and a space, and never after a delimiter alone."""
    text = "".join(lines)
    if f'{plain.delimiter} "' not in text or f'{plain.delimiter}"' in text:
        return False
    as_plain, as_spaced = _sampled(lines, plain), _sampled(lines, spaced)
    if _score(as_spaced) < _score(as_plain):
        return False
    # A cell that was quoted as a whole, its first space included, is the same in both.
    plain_cells = [cell for row in as_plain if isinstance(row, list) for cell in row]
    spaced_cells = {cell for row in as_spaced if isinstance(row, list) for cell in row}
    return any(cell.startswith(' "') and cell not in spaced_cells for cell in plain_cells)
