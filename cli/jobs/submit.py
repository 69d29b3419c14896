"""`bros-batch submit`: a file becomes a job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from cli.connection_options import service_options
from cli.failure import USED_WRONGLY, Failure
from cli.output import json_option, note, output_option, print_json, write_lines

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")


@click.command()
@click.argument("source", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--prompt", help='What to do with each document: "Summarise: {text}".')
@click.option("--system", help="A system message for every document.")
@click.option("--model", help="The model  [the one that is served]")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer, in tokens.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 always takes the likeliest token.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True))
@click.option("--top-k", type=click.IntRange(-1))
@click.option("--seed", type=int, help="Same seed, same answers.")
@click.option("--stop", multiple=True, help="Text that ends an answer; may be repeated.")
@click.option("--name", help="What to call the job  [the file's name]")
@click.option("--priority", type=int, default=0, show_default=True, help="Higher goes first.")
@click.option(
    "--deadline",
    metavar="TIME",
    help="When it must be done: 90m, 6h, 2d, or a date and time in ISO 8601  [24h]",
)
@click.option("--endpoint", type=click.Choice(ENDPOINTS), default=ENDPOINTS[0], show_default=True)
@click.option("--wait", is_flag=True, help="Stay until it is done; exit 1 unless every line succeeded.")
@output_option
@json_option
@service_options
def submit(
    client: Client,
    source: str,
    name: str | None,
    priority: int,
    deadline: str | None,
    endpoint: str,
    wait: bool,
    output: str | None,
    as_json: bool,
    model: str | None,
    **request: Any,
) -> None:
    """Send FILE (or - for stdin) as a job.

    FILE has one JSON object a line. Either each is a document, whose fields fill --prompt:

    \b
        {"id": "a1", "text": "Dear Sirs, ..."}

    or each is a request in OpenAI's batch format, and --prompt is left out. With -o the results are written
    there when the job is done, which implies --wait.
    """
    if as_json and output == "-":
        raise click.UsageError("--json and -o - would both print to stdout; choose one.")
    given = {key: value for key, value in request.items() if value not in (None, ())}
    with _opened(source) as (stream, size):
        file = _upload(client, source, stream, size, given)
    body: dict[str, Any] = {
        "input_file_id": file["id"],
        "endpoint": endpoint,
        "completion_window": "24h",
        "name": name or (None if source == "-" else Path(source).name),
        "priority": priority,
        "defaults": {**given, **({"model": model} if model else {})},
    }
    if deadline:
        body["deadline"] = deadline
    batch = client.post("/v1/batches", body)
    if not wait and output is None:
        if as_json:
            print_json(batch)
        elif sys.stdout.isatty():
            click.echo(f"{batch['id']}\nbros-batch status {batch['id'][:12]} --watch   follows it")
        else:
            click.echo(batch["id"])  # JOB=$(bros-batch submit ...)
        return
    finish(client, batch, output, as_json)


def finish(client: Client, batch: dict[str, Any], output: str | None, as_json: bool) -> None:
    """Follow the job to its end, fetch what it has, and fail unless every line succeeded."""
    from rich.console import Console

    from cli.jobs.progress import follow
    from cli.jobs.status import summary

    job = batch["id"]
    try:
        batch = follow(client, batch, Console(stderr=True))
    except KeyboardInterrupt:
        note(f"The job goes on. Come back with: bros-batch status {job} --watch")
        raise
    if output is not None:
        count = write_lines(client.result_lines(job, "succeeded"), output)
        if output != "-":
            note(f"{count} results in {output}")
    if as_json:
        print_json(batch)
    elif output != "-":
        click.echo(summary(batch))
    counts = batch["request_counts"]
    if batch["status"] != "completed" or counts["completed"] < counts["total"]:
        raise Failure(_shortfall(batch))


def _shortfall(batch: dict[str, Any]) -> str:
    counts = batch["request_counts"]
    if batch["status"] == "failed":
        errors = (batch.get("errors") or {}).get("data") or [{"message": "its file could not be used"}]
        return f"the job failed: {errors[0]['message']}"
    if batch["status"] != "completed":
        return (
            f"the job was not completed: it is {batch['status']}, {counts['completed']} lines have results."
        )
    return (
        f"{counts['failed']} of {counts['total']} lines failed; `bros-batch errors {batch['id']}` shows why."
    )


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
        raise Failure(f"{source}: {error.strerror}.", USED_WRONGLY) from None


def _upload(
    client: Client, source: str, stream: BinaryIO, size: int | None, given: dict[str, Any]
) -> dict[str, Any]:
    from cli.jobs.input_check import BadInput, HeadedStream, check_head, read_head

    head = read_head(stream)
    try:
        other_flags = [f"--{name.replace('_', '-')}" for name in given if name != "prompt"]
        for warning in check_head(head, given.get("prompt"), other_flags):
            note(f"{warning} It will be reported as failed.")
    except BadInput as error:
        raise Failure(str(error), USED_WRONGLY) from None
    with _upload_bar(size) as advance:
        body = HeadedStream(head, stream, advance, size)
        name = "stdin.jsonl" if source == "-" else Path(source).name
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
