"""`bros-batch results` and `errors`: fetch the outcome of a job's items, also while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from bros_batch.item_counts import ItemCounts
from cli.connection_options import connection_options
from cli.output import note, safe
from cli.output_file import check_output, output_option, write_lines

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client


@click.command()
@click.argument("job")
@output_option
@click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    help="Accepted for consistency; results are always JSON lines.",
)
@connection_options
def results(client: Client, job: str, output: str | None) -> None:
    """Fetch the results of JOB as JSON lines in input order. A running job returns the results it has so far."""
    check_output(output)
    batch = client.find_batch(job)
    count = write_lines(client.result_lines(batch["id"], "succeeded"), output)
    where = "" if output in (None, "-") else f" in {output}"
    if batch["status"] != "completed":
        total = ItemCounts.of_batch(batch).total
        note(f"{count} of {total} results so far{where}; the job is {batch['status']}.")
    elif where:
        note(f"{count} results{where}")


@click.command()
@click.argument("job")
@output_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@connection_options
def errors(client: Client, job: str, output: str | None, as_json: bool) -> None:
    """Show the items of JOB that have no result, and why."""
    check_output(output)
    batch = client.find_batch(job)
    lines = client.result_lines(batch["id"], "failed")
    if as_json or output is not None:
        write_lines(lines, output)
        return
    count = 0
    for name, code, message in _errors_of(batch, lines):
        click.echo(f"{safe(name)}  {code}: {safe(message)}")
        count += 1
    if not count:
        note("No errors.")


def _errors_of(batch: dict[str, Any], lines: Iterator[bytes]) -> Iterator[tuple[str, str, str]]:
    """Yield (name, code, message) for each error: of the input file as a whole if it was rejected, then of each item.

    A bad line is an item as well, so its error is left to the items.
    """
    if batch["status"] == "failed":
        for error in (batch.get("errors") or {}).get("data") or []:
            if not error.get("line"):
                yield "file", error["code"], error["message"]
    for line in lines:
        record = json.loads(line)
        error = record.get("error") or ((record.get("response") or {}).get("body") or {}).get("error") or {}
        yield (
            record.get("custom_id") or record["id"],
            error.get("code") or "error",
            error.get("message") or "",
        )
