"""`bros-batch submit`: upload a file as a job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from bros_batch.item_counts import ItemCounts
from bros_batch.openai_api.endpoints import ENDPOINTS
from cli.connection_options import connection_options
from cli.escapes import unescape
from cli.failure import USAGE_ERROR, Failure
from cli.numbers import NUM_TOKENS, TEMPERATURE, TOP_K, Finite
from cli.output import json_option, note, print_json
from cli.output_file import check_not_input, check_output, output_option, write_lines
from cli.schema_option import response_format, schema_option
from cli.text_options import TEXT, shown_name

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client


@click.command()
@click.argument("source", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--prompt",
    type=TEXT,
    callback=unescape,
    help=r"""Prompt template for plain documents, such as "Summarize: {text}". {name} stands for any field of a
    document, {{ and }} for single braces; \n is a line break, \t a tab, and \\ a backslash.""",
)
@click.option(
    "--prompt-file",
    type=click.Path(dir_okay=False),
    help="Read the prompt template from this file, as it is; a line break at its end is dropped.",
)
@click.option(
    "--system",
    type=TEXT,
    callback=unescape,
    help="System message for every document; a template with the rules of --prompt.",
)
@click.option(
    "--model",
    type=TEXT,
    show_default="the served model",
    help="Name of the model. Requests in OpenAI's batch format run with it, whichever model they name.",
)
@schema_option
@click.option("--max-tokens", type=NUM_TOKENS, help="Maximum length of an answer, in tokens.")
@click.option("--temperature", type=TEMPERATURE, help="Sampling temperature; 0 is greedy decoding.")
@click.option(
    "--top-p",
    type=Finite(0, 1, min_open=True),
    help="Sample from the most likely tokens that reach this total probability.",
)
@click.option("--top-k", type=TOP_K, help="Sample from this many most likely tokens; 0 or -1 means all.")
@click.option("--seed", type=int, help="Seed for sampling; the same seed gives the same answers.")
@click.option(
    "--stop",
    type=TEXT,
    multiple=True,
    callback=unescape,
    help=r"Text that ends an answer, with \n, \t and \\ as in --prompt; can be repeated.",
)
@click.option("--name", type=TEXT, show_default="the file name", help="Name of the job.")
@click.option(
    "--priority",
    type=click.IntRange(-1_000_000, 1_000_000),
    default=0,
    show_default=True,
    help="Priority of the job; higher values run first.",
)
@click.option(
    "--deadline",
    type=TEXT,
    metavar="TIME",
    show_default="24h",
    help="When the job expires: 90m, 6h, 2d, or a date and time in ISO 8601.",
)
@click.option(
    "--fresh",
    is_flag=True,
    help="Compute every answer, even if an earlier item has had the same request and its answer is known.",
)
@click.option(
    "--endpoint",
    type=click.Choice(ENDPOINTS),
    default=ENDPOINTS[0],
    show_default=True,
    help="API endpoint that the items are sent to.",
)
@click.option(
    "--wait", is_flag=True, help="Wait until the job ends; exit with 1 unless every item succeeded."
)
@output_option
@json_option
@connection_options
def submit(
    client: Client,
    source: str,
    name: str | None,
    priority: int,
    deadline: str | None,
    fresh: bool,
    endpoint: str,
    wait: bool,
    output: str | None,
    as_json: bool,
    model: str | None,
    prompt_file: str | None,
    schema: str | None,
    **defaults: Any,
) -> None:
    """Submit FILE, or stdin if FILE is -, as a job.

    FILE holds one JSON object per line. Each object is either a document, whose fields fill the --prompt template:

    \b
        {"id": "a1", "text": "Dear Sirs, ..."}

    or a request in OpenAI's batch format, without --prompt. With -o, the command waits for the job and writes the
    results to that file.
    """
    if as_json and output == "-":
        raise click.UsageError("--json and -o - both print to stdout; use only one of them.")
    check_output(output)
    if prompt_file is not None:
        if defaults["prompt"] is not None:
            raise click.UsageError("Use either --prompt or --prompt-file.")
        defaults["prompt"] = _read_prompt(prompt_file, output)
    given = {key: value for key, value in defaults.items() if value not in (None, ())}
    if schema is not None:
        given["response_format"] = response_format(schema)
    with _opened(source) as (stream, size):
        check_not_input(output, stream, source if source != "-" else "the file on stdin")
        file = _upload(client, source, stream, size, given)
    body: dict[str, Any] = {
        "input_file_id": file["id"],
        "endpoint": endpoint,
        "completion_window": "24h",
        "name": name or (None if source == "-" else shown_name(Path(source).name)),
        "priority": priority,
        "defaults": {**given, **({"model": model} if model else {})},
    }
    if deadline:
        body["deadline"] = deadline
    if fresh:
        body["fresh"] = True
    batch = client.create_batch(body)
    if not wait and output is None:
        if as_json:
            print_json(batch)
        elif sys.stdout.isatty():
            click.echo(f"{batch['id']}\nbros-batch status {batch['id'][:12]} --watch   shows its progress")
        else:
            click.echo(batch["id"])  # JOB=$(bros-batch submit ...)
        return
    finish(client, batch, output, as_json)


def finish(client: Client, batch: dict[str, Any], output: str | None, as_json: bool) -> None:
    """Watch the job until it ends, fetch its results, and fail unless every item succeeded."""
    from rich.console import Console

    from cli.jobs.progress import follow
    from cli.jobs.status import summary

    job = batch["id"]
    try:
        batch = follow(client, batch, Console(stderr=True))
    except KeyboardInterrupt:
        note(f"The job continues to run. To watch it again: bros-batch status {job} --watch")
        raise
    if output is not None:
        count = _write_results(client, batch, output)
        if output != "-":
            note(f"{count} results in {output}")
    if as_json:
        print_json(batch)
    elif output != "-":
        click.echo(summary(batch))
    counts = ItemCounts.of_batch(batch)
    if batch["status"] != "completed" or counts.succeeded < counts.total:
        raise Failure(_shortfall(batch))


def _write_results(client: Client, batch: dict[str, Any], output: str) -> int:
    from cli.jobs.result_table import Selection, table_format, write_result_table

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


def _read_prompt(path: str, output: str | None) -> str:
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            check_not_input(output, file, path)
            text = file.read()
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}.", USAGE_ERROR) from None
    except UnicodeDecodeError:
        raise Failure(f"{path} is not UTF-8 text.", USAGE_ERROR) from None
    return text.removesuffix("\n")


@contextmanager
def _opened(source: str) -> Iterator[tuple[BinaryIO, int | None]]:
    if source == "-":
        yield sys.stdin.buffer, None
        return
    try:
        with Path(source).open("rb") as file:
            yield file, Path(source).stat().st_size
    except OSError as error:
        if error.filename != source:
            raise
        raise Failure(f"{source}: {error.strerror}.", USAGE_ERROR) from None


def _upload(
    client: Client, source: str, stream: BinaryIO, size: int | None, given: dict[str, Any]
) -> dict[str, Any]:
    from cli.jobs.headed_stream import HeadedStream
    from cli.jobs.input_check import BadInput, check_head, read_head

    head = read_head(stream)
    try:
        flags = {"response_format": "--schema"}
        other_flags = [flags.get(name, f"--{name.replace('_', '-')}") for name in given if name != "prompt"]
        for warning in check_head(head, given.get("prompt"), other_flags, given.get("system")):
            note(warning)
    except BadInput as error:
        raise Failure(str(error), USAGE_ERROR) from None
    with _upload_bar(size) as advance:
        body = HeadedStream(head, stream, advance, size)
        name = "stdin.jsonl" if source == "-" else shown_name(Path(source).name)
        return client.upload(name, body)


@contextmanager
def _upload_bar(size: int | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or (size is not None and size < 4 * 1024**2):
        yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("uploading"), BarColumn(24), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=size)
        yield lambda count: bar.advance(task, count)
