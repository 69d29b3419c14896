"""The table that a command reads: opened, with its problems as failures of the command and its notes on stderr."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bros_batch.client.plain_text import shown_name
from cli.failure import USAGE_ERROR, Failure
from cli.output import note

if TYPE_CHECKING:
    from bros_batch.documents.readers.table import Table


@contextmanager
def opened_table(
    sources: Sequence[str], sheet: str | None = None, fields: Iterable[str] = (), quiet: bool = False
) -> Iterator[Table]:
    """Open the one table of these sources: a file, a directory, a pattern, a URL or stdin, or a list of documents.

    Without a `sheet`, the first sheet of a workbook that has these `fields` is preferred. `quiet` leaves its notes
    out, for a table that is read a second time.
    """
    from bros_batch.documents.readers.documents_table import local_files
    from bros_batch.documents.readers.open_table import open_table
    from bros_batch.documents.readers.table import UnreadableTable

    try:
        with (
            local_files(sources) if len(sources) > 1 else open_table(sources[0], sheet=sheet, fields=fields)
        ) as table:
            for sentence in () if quiet else table.notes:
                note(f"{shown_name(table.name)}: {sentence}")
            if sheet is None and len(table.sheets) > 1 and not quiet:
                note(f"To read another sheet, add --sheet {shown_name(shlex.quote(table.sheets[1]))}")
            yield table
    except UnreadableTable as error:
        raise Failure(shown_name(str(error)), USAGE_ERROR) from None
    except OSError as error:
        if error.filename is None or str(error.filename) not in sources:
            raise
        raise Failure(f"{shown_name(str(error.filename))}: {error.strerror}.", USAGE_ERROR) from None
