"""The end of a submitted job: `submit --wait` and `submit -o` watch it, and fetch its results."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from bros_batch.item_counts import ItemCounts
from cli.failure import Failure
from cli.output import counted, note, print_json
from cli.output_file import write_lines

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client


def finish(client: Client, batch: dict[str, Any], output: str | None, as_json: bool) -> None:
    """Watch the job until it ends, fetch its results, and fail unless every item succeeded."""
    from rich.console import Console

    from bros_batch.client.progress import follow
    from cli.jobs.status import summary

    job = batch["id"]
    try:
        batch = follow(client, batch, Console(stderr=True))
    except KeyboardInterrupt:
        note(f"The job continues to run. To watch it again: bros-batch status {job} --watch")
        if output not in (None, "-"):
            note(f"To write its results: bros-batch results {job} -o {shlex.quote(output)}")
        raise
    if output is not None:
        count = _write_results(client, batch, output)
        if output != "-":
            note(f"{counted(count, 'result')} in {output}")
    if as_json:
        print_json(batch)
    elif output != "-":
        click.echo(summary(batch))
    counts = ItemCounts.of_batch(batch)
    if batch["status"] != "completed" or counts.succeeded < counts.total:
        raise Failure(_shortfall(batch))


def _write_results(client: Client, batch: dict[str, Any], output: str) -> int:
    from bros_batch.client.result_table import Selection, table_format, write_result_table

    job = batch["id"]
    try:
        kind = table_format(batch, output)
        if kind is not None:
            return write_result_table(client, batch, kind, output, Selection())
        return write_lines(client.result_lines(job, "succeeded"), output)
    except BrokenPipeError:
        raise
    except OSError as error:
        place = "stdout" if output == "-" else output
        raise Failure(
            f"Cannot write {place}: {error.strerror}. The results are safe on the server; "
            f"to fetch them: bros-batch results {job} -o FILE"
        ) from None


def _shortfall(batch: dict[str, Any]) -> str:
    counts = ItemCounts.of_batch(batch)
    if batch["status"] == "failed":
        errors = (batch.get("errors") or {}).get("data") or [{"message": "its input file could not be used"}]
        return f"the job failed: {errors[0]['message']}"
    if batch["status"] != "completed":
        return (
            f"the job did not complete: it is {batch['status']}, and {counts.succeeded} items have results."
        )
    return f"{counts.without_result} of {counts.total} items failed; run `bros-batch errors {batch['id']}` to see why."
