"""`submit --first N`: the first rows as a job of their own, whose answers are shown before the others are computed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bros_batch.client.plain_text import duration, safe
from bros_batch.documents.readers.table_lines import LineStream
from cli.failure import Failure
from cli.output import note

if TYPE_CHECKING:
    from rich.table import Table

    from bros_batch.client.http_client import Client

# More urgent than other jobs: somebody waits for these rows.
PRIORITY = 1_000_000
MAX_ROWS = 100
MAX_CELL_CHARS = 60
MAX_FIELDS = 3


def take_lines(lines: Iterator[bytes], count: int) -> list[bytes]:
    """Take the first lines, `count` of them if there are as many. A long line may come in pieces."""
    taken: list[bytes] = []
    while count and (piece := next(lines, None)) is not None:
        taken.append(piece)
        count -= piece.endswith(b"\n")
    return taken


def run_first_rows(
    client: Client, lines: Sequence[bytes], body: Mapping[str, Any], fields: Sequence[str]
) -> dict[str, Any]:
    """Run these lines as a job, and show its answers beside these fields. Returns the batch when it has ended."""
    from rich.console import Console

    from bros_batch.client.progress import follow

    file = client.upload("first-rows.jsonl", LineStream(lines))
    name = f"{body['name'][:200]} (first rows)"
    batch = client.create_batch({**body, "input_file_id": file["id"], "name": name, "priority": PRIORITY})
    console = Console(stderr=True)
    batch = follow(client, batch, console)
    rows = client.get(f"/v1/batches/{batch['id']}/rows", limit=MAX_ROWS)["data"]
    console.print(_table(rows, fields))
    note(_summary(rows))
    return batch


def confirm_all(batch: Mapping[str, Any], is_stdin: bool) -> None:
    """Ask whether the other rows should be computed, too. Ends the command if not, or if nobody can be asked."""
    question = "Compute all rows? [y/N] "
    hint = f"The first rows are the job {batch['id']}. Nothing else was submitted"
    try:
        # The table itself may come from stdin.
        with Path("/dev/tty").open(encoding="utf-8") if is_stdin else nullcontext(sys.stdin) as terminal:
            if not terminal.isatty():
                raise OSError
            click.echo(question, nl=False, err=True)
            answer = terminal.readline()
    except OSError:
        raise Failure(f"{hint}, because nobody can be asked here; add --yes to compute all rows.") from None
    if answer.strip().lower() not in ("y", "yes"):
        note(f"{hint}.")
        raise click.exceptions.Exit(0)


def _table(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> Table:
    from rich.table import Table

    answers = [row["answer"] for row in rows]
    names = list(
        dict.fromkeys(name for answer in answers if isinstance(answer, dict) for name in answer)
    ) or ["answer"]
    shown = list(fields)[:MAX_FIELDS]
    table = Table(show_edge=False)
    table.add_column("row", justify="right")
    for name in shown:
        table.add_column(safe(name), style="dim")
    for name in names:
        table.add_column(safe(name))
    table.add_column("tokens", justify="right")
    table.add_column("seconds", justify="right")
    for row in rows:
        document, answer = row["document"] or {}, row["answer"]
        if row["error"] is not None:
            cells = [row["error"]["message"], *[""] * (len(names) - 1)]
        else:
            cells = [answer.get(name) if isinstance(answer, dict) else answer for name in names]
        seconds = _seconds(row)
        table.add_row(
            str(row["row"]),
            *(_cell(document.get(name) if isinstance(document, dict) else None) for name in shown),
            *map(_cell, cells),
            str(row["prompt_tokens"] + row["output_tokens"]),
            "" if seconds is None else f"{seconds:.1f}",
        )
    return table


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    tokens = sum(row["prompt_tokens"] + row["output_tokens"] for row in rows)
    failed = sum(row["error"] is not None for row in rows)
    ends = [row["finished_at"] for row in rows if row["finished_at"] and row["queued_at"]]
    starts = [row["queued_at"] for row in rows if row["queued_at"]]
    took = f", {duration(max(ends) - min(starts))}" if ends else ""
    return f"{len(rows)} rows, {tokens:,} tokens{took}{f', {failed} failed' if failed else ''}"


def _seconds(row: Mapping[str, Any]) -> float | None:
    if not row["finished_at"] or not row["queued_at"]:
        return None
    return float(row["finished_at"] - row["queued_at"])


def _cell(value: Any) -> Any:
    from rich.text import Text

    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = " ".join(safe(text).split())
    return Text(line if len(line) <= MAX_CELL_CHARS else f"{line[:MAX_CELL_CHARS]}...")
