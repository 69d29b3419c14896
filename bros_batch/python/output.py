"""The file that a table is written to: checked before the work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bros_batch.client.bad_input import BadInput
from bros_batch.client.output_file import check_writable
from bros_batch.documents.writers.table_limits import UnwritableTable
from bros_batch.documents.writers.write_table import FORMATS, check_library, format_of


def output_format(output: str) -> str:
    """Return the format that the suffix of a file stands for. Raises BadInput if there is none."""
    kind = format_of(output)
    if kind is None:
        raise BadInput(f"{output}: the name of the output must end in one of {', '.join(FORMATS)}.")
    return kind


def check_output(output: str | Path, table: Any) -> None:
    """Raise BadInput or OSError if the file cannot be written, or is the one that is read."""
    try:
        check_library(output_format(str(output)))
    except UnwritableTable as error:
        raise BadInput(str(error)) from None
    check_writable(str(output))
    is_same = isinstance(table, str | Path) and Path(table).is_file() and Path(output).exists()
    if is_same and Path(table).samefile(output):
        raise BadInput(f"The output would replace {output}, which is the input; choose another file.")
