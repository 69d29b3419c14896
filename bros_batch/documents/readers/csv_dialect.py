"""The dialect of a CSV file from its beginning."""

from __future__ import annotations

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
    best, best_score = Dialect(NO_DELIMITER), (0.0, 0)
    for delimiter in candidates:
        for escape in (None, "\\"):
            if escape and not any('\\"' in line for line in lines):
                continue
            dialect = Dialect(delimiter, escape, _skips_space(lines, delimiter))
            score = _score(lines, dialect)
            if score > best_score:
                best, best_score = dialect, score
    return best


def _score(lines: list[str], dialect: Dialect) -> tuple[float, int]:
    """Return the share of regular rows, and the number of columns."""
    rows = list(islice(csv_rows(lines, dialect), SAMPLE_ROWS))
    width = len(rows[0]) if rows and isinstance(rows[0], list) else 0
    if width < 2:
        return 0.0, 0
    regular = sum(isinstance(row, list) and len(row) == width for row in rows)
    return regular / len(rows), width


def _skips_space(lines: list[str], delimiter: str) -> bool:
    """Whether quotation marks come after a delimiter and a space, and never after a delimiter alone."""
    text = "".join(lines)
    return f'{delimiter} "' in text and f'{delimiter}"' not in text
