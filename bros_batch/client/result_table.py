"""The results of a job as a table: the columns of its documents, those of the answers, and `_error`."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bros_batch.client.bad_input import BadInput
from bros_batch.client.output_file import parent_of, written_file
from bros_batch.documents.answer_columns import KnownColumns
from bros_batch.documents.writers.answer_table import write_answer_table
from bros_batch.documents.writers.table_limits import UnwritableTable, check_num_rows
from bros_batch.documents.writers.write_table import check_library, format_of

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client

MAX_NAMED_COLUMNS = 30


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows and columns are asked for. Without `columns`, all of them are."""

    columns: Sequence[str] = ()
    only_failed: bool = False


def table_format(batch: dict[str, Any], output: str | None) -> str | None:
    """Return the format in which the results of a job are written, or None for OpenAI's lines.

    Those are for jobs whose lines are requests of OpenAI's batch format, unless the name of the file asks for a table.
    """
    kind = format_of(output) if output not in (None, "-") else "jsonl"
    if kind == "jsonl" or kind is None:
        return None if batch.get("line_form") == "batch" else "jsonl"
    return kind


def check_table(kind: str, num_rows: int) -> None:
    """Raise BadInput if a table cannot be written in this format, so that this is known before the rows are fetched."""
    try:
        check_library(kind)
        check_num_rows(kind, num_rows)
    except UnwritableTable as error:
        raise BadInput(str(error)) from None


def write_result_table(
    client: Client, batch: dict[str, Any], kind: str, output: str | None, selection: Selection
) -> int:
    """Write the rows of a job that have ended. Returns their number.

    All of them are fetched first, into a temporary file beside the output. Raises OSError, which names the output, if
    it cannot be written, and UnwritableTable for a table that the format cannot hold.
    """
    known, wanted = KnownColumns.of_batch(batch), selection.columns
    lines = client.row_lines(batch["id"], only="failed" if selection.only_failed else "ended")
    choose = (lambda names: list(_split(wanted, names))) if wanted else None
    with tempfile.TemporaryFile(dir=parent_of(output)) as spool, written_file(output) as file:
        return write_answer_table(kind, file, known, lines, spool, choose)


def _split(wanted: Iterable[str], names: Sequence[str]) -> Iterator[str]:
    """Yield the names of columns in the values of --select. A value is a name, or names with commas between them."""
    for value in wanted:
        for name in [value] if value in names else [part.strip() for part in value.split(",")]:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                shown = ", ".join(names[:MAX_NAMED_COLUMNS])
                raise BadInput(f"There is no column {name!r}.{hint} The columns are: {shown}.")
            yield name
