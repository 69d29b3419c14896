"""The results of a job as a table: the columns of its documents, those of the answers, and `_error`."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from bros_batch.client.bad_input import BadInput
from bros_batch.client.output_file import parent_of, written_file
from bros_batch.documents.answer_columns import AnswerColumns, KnownColumns
from bros_batch.documents.writers.table_limits import UnwritableTable, check_num_rows
from bros_batch.documents.writers.write_table import check_library, format_of, write_table

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

    All of them are fetched first, into a temporary file beside the output, because the last row may have a column that
    the others have not. Raises OSError, which names the output, if it cannot be written, and UnwritableTable for a
    table that the format cannot hold.
    """
    columns = AnswerColumns(KnownColumns.of_batch(batch))
    only = "failed" if selection.only_failed else "ended"
    with tempfile.TemporaryFile(dir=parent_of(output)) as spool:
        decode = msgspec.json.Decoder().decode
        for line in client.row_lines(batch["id"], only=only):
            columns.see(decode(line))
            spool.write(line)
        names, types, values = _selected(columns, selection.columns)

        def rows() -> Iterator[Sequence[Any]]:
            spool.seek(0)
            return map(values, map(decode, spool))

        with written_file(output) as file:
            return write_table(kind, file, names, rows, types)


def _selected(
    columns: AnswerColumns, wanted: Sequence[str]
) -> tuple[list[str], list[str | None], Callable[[Any], Sequence[Any]]]:
    """The names and types of the columns that are written, and what makes a row of the API into their values."""
    names, types = columns.names, columns.types
    if not wanted:
        return names, types, columns.values
    chosen = list(_split(wanted, names))
    places = [names.index(name) for name in chosen]
    pick = itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)
    return chosen, [types[place] for place in places], lambda row: pick(columns.values(row))


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
