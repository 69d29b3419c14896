"""How a table becomes a job, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bros_batch.client.bad_input import NoRows
from bros_batch.client.input_check import check_head, read_head
from bros_batch.client.plain_text import shown_name
from bros_batch.client.table_upload import upload
from bros_batch.documents.readers.places import last_part, protocol_of
from bros_batch.documents.readers.table_lines import table_lines
from bros_batch.request_error import RequestError
from bros_batch.text.template import parse_template

if TYPE_CHECKING:
    from rich.console import Console

    from bros_batch.client.http_client import Client
    from bros_batch.documents.readers.table import Table

MAX_NAME_CHARS = 256


def named_fields(defaults: Mapping[str, Any], id_field: str | None) -> list[str]:
    """The fields that every row needs for a job with these defaults. A template that is unusable names none."""
    fields = [] if id_field is None else [id_field]
    for source in (defaults.get("prompt"), defaults.get("system")):
        with suppress(RequestError):  # which `checked_lines` reports
            fields += parse_template(source or "").fields
    return fields


def checked_lines(
    table: Table,
    defaults: Mapping[str, Any],
    id_field: str | None,
    spelled: Callable[[str], str],
    on_warning: Callable[[str], None],
) -> Iterator[bytes]:
    """Check the first rows of a table against the defaults of their job, and return the lines of all rows.

    Raises BadInput if no row is usable or the defaults do not fit the rows. See `check_head` for `spelled`.
    """
    lines = table_lines(table)
    head = read_head(lines)
    word = "Line" if table.format == "jsonl" else "Row"
    try:
        warnings = check_head(b"".join(head), defaults, id_field, word, spelled)
    except NoRows:
        if not table.columns:
            raise
        names = ", ".join(table.columns[:5])
        message = f"{table.name} has no rows: it was read as {table.format}, and nothing follows its columns ({names})."
        raise NoRows(shown_name(message)) from None
    for warning in warnings:
        on_warning(warning)
    return chain(head, lines)


def source_object(table: Table, name: str, id_field: str | None) -> dict[str, Any]:
    """What a job remembers about its table, from which results are written as a table again."""
    source = {
        "name": name[:MAX_NAME_CHARS],
        "format": table.format,
        "columns": table.columns,
        "id_field": id_field or table.id_field,
        "types": table.types or None,
    }
    return {key: value for key, value in source.items() if value is not None}


def create_job(
    client: Client, lines: Iterator[bytes], table: Table, body: Mapping[str, Any], console: Console | None
) -> dict[str, Any]:
    """Upload the lines of a table and create the job that computes them. Returns its batch object."""
    file = upload(client, f"{Path(body['name']).stem}.jsonl", lines, table, console)
    if table.types:  # those of a sheet are known now
        body = {**body, "source": {**body["source"], "types": table.types}}
    return client.create_batch({**body, "input_file_id": file["id"]})


def job_name(sources: Sequence[str]) -> str:
    """Return the name of a job over these sources if it gets no other."""
    first = sources[0]
    if first == "-":
        return "stdin"
    name = last_part(first) if protocol_of(first) else Path(first).resolve().name or first
    return shown_name(name if len(sources) == 1 else f"{name} and {len(sources) - 1} more")[:MAX_NAME_CHARS]
