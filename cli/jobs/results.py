"""`bros-batch results` and `errors`: fetch the outcome of a job's items, also while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from bros_batch.client.plain_text import safe
from bros_batch.client.result_table import Selection, check_table, table_format, write_result_table
from bros_batch.item_counts import ItemCounts
from cli.connection_options import connection_options
from cli.output import counted, note
from cli.output_file import check_output, output_option, write_lines

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client


ENDED = ("completed", "failed", "expired", "cancelled")


@click.command()
@click.argument("job")
@output_option
@click.option(
    "--select",
    multiple=True,
    metavar="COLUMNS",
    help="Write these columns only, in this order: id,total,_error. Can be repeated.",
)
@click.option("--only-failed", is_flag=True, help="Write only the rows that have no answer.")
@click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    help="Accepted for consistency; without a file, results are always JSON lines.",
)
@connection_options
def results(client: Client, job: str, output: str | None, select: tuple[str, ...], only_failed: bool) -> None:
    """Fetch the rows of JOB with their answers, in input order. A running job returns the rows that have ended so far.

    The suffix of the file says how they are written: .csv, .tsv, .xlsx, .parquet or .jsonl. The columns are those of
    the input, those of the answers, and _error. The results of a file in OpenAI's batch format are written in the
    format of OpenAI's output files, except to .csv, .tsv, .xlsx and .parquet.
    """
    check_output(output)
    batch = client.find_batch(job)
    counts = ItemCounts.of_batch(batch)
    kind = table_format(batch, output)
    if kind is None and (select or only_failed):
        option = "--select" if select else "--only-failed"
        raise click.UsageError(f"{option} is for tables; write to a .csv, .tsv, .xlsx or .parquet file.")
    if kind is None:
        count = write_lines(client.result_lines(batch["id"], "succeeded"), output)
        total, what = counts.total, "result"
    else:
        expected = counts.without_result if only_failed else counts.ended
        check_table(kind, expected)
        count = write_result_table(client, batch, kind, output, Selection(select, only_failed))
        total, what = counts.total, "row"
    where = "" if output in (None, "-") else f" in {output}"
    if batch["status"] not in ENDED:
        note(f"{count} of {counted(total, what)} so far{where}; the job is {batch['status']}.")
    elif where:
        note(f"{counted(count, what)}{where}{_without_answer(kind, counts)}")


def _without_answer(kind: str | None, counts: ItemCounts) -> str:
    if kind is None or not counts.without_result:
        return ""
    return f", {counts.without_result} of them without an answer (see the column _error)"


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
