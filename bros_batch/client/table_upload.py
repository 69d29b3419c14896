"""The upload of a table while it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from bros_batch.documents.readers.table_lines import LineStream

if TYPE_CHECKING:
    from rich.console import Console

    from bros_batch.client.http_client import Client
    from bros_batch.documents.readers.table import Table

SHOWN_FROM_BYTES = 4 * 1024**2
UPDATE_LINES = 1000


def upload(
    client: Client, name: str, lines: Iterable[bytes], table: Table, console: Console | None
) -> dict[str, Any]:
    """Upload lines that come from a table, and show on a terminal how much of it has been read."""
    return client.upload(name, LineStream(_shown(lines, table, console)))


def _shown(lines: Iterable[bytes], table: Table, console: Console | None) -> Iterator[bytes]:
    size = table.size_bytes
    if console is None or not console.is_terminal or (size is not None and size < SHOWN_FROM_BYTES):
        yield from lines
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("uploading"),
        BarColumn(24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=size, rows=0)
        for number, line in enumerate(lines, start=1):
            if number % UPDATE_LINES == 0:
                bar.update(task, completed=table.bytes_read(), rows=number)
            yield line
