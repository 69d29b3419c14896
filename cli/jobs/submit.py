"""`bros-batch submit`: upload a table, documents or requests as a job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bros_batch.openai_api.endpoints import ENDPOINTS
from cli.column_option import column_option
from cli.connection_options import connection_options
from cli.escapes import unescape
from cli.failure import USAGE_ERROR, Failure
from cli.jobs.dry_run import show_forecast
from cli.jobs.finish import finish
from cli.jobs.first_rows import MAX_ROWS, confirm_all, run_first_rows, take_lines
from cli.notify_option import notify_option
from cli.numbers import NUM_TOKENS, TEMPERATURE, TOP_K, Finite
from cli.output import json_option, note, print_json
from cli.output_file import check_not_input, check_output, output_option
from cli.prompt_option import FILES, prompt_text
from cli.schema_option import schema_option
from cli.sheet_option import sheet_option
from cli.text_options import TEXT

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client


@click.command()
@click.argument("sources", metavar="FILE", type=click.Path(allow_dash=True), nargs=-1, required=True)
@click.option(
    "--prompt",
    type=TEXT,
    callback=prompt_text,
    help=r"""Prompt template, such as "Summarize: {text}", or @FILE for one in a file. {name} stands for any column,
    {order.id} for a value within one; {{ and }} are braces, \n is a line break, \t a tab, and \\ a backslash.""",
)
@click.option(
    "--system",
    type=TEXT,
    callback=prompt_text,
    help="System message for every document; a template with the rules of --prompt.",
)
@click.option(
    "--model",
    type=TEXT,
    show_default="the served model",
    help="Name of the model. Requests in OpenAI's batch format run with it, whichever model they name.",
)
@schema_option
@column_option
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
@click.option(
    "--id-field",
    type=TEXT,
    show_default="custom_id or id",
    help="Column with the ids of the rows, which may repeat.",
)
@sheet_option
@click.option(
    "--first",
    type=click.IntRange(1, MAX_ROWS),
    metavar="N",
    help="Compute the first N rows at once, show their answers, and ask whether to compute all.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Submit nothing; show rows, tokens, rows that would be rejected, the first prompt and the time it would take.",
)
@click.option("--yes", is_flag=True, help="With --first, compute all rows without a question.")
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
@notify_option
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
    sources: Sequence[str],
    name: str | None,
    priority: int,
    deadline: str | None,
    fresh: bool,
    notify: str | None,
    endpoint: str,
    wait: bool,
    output: str | None,
    as_json: bool,
    model: str | None,
    schema: str | None,
    columns: Sequence[str],
    id_field: str | None,
    sheet: str | None,
    first: int | None,
    dry_run: bool,
    yes: bool,
    **defaults: Any,
) -> None:
    """Submit FILE as a job: a table, a directory or pattern of documents, a URL, or stdin if FILE is -.

    A table is CSV, TSV, JSON, JSON lines, Parquet or Excel, and may be packed as gz, zst, bz2, xz or zip. Each row is
    put into the --prompt; without one, the command shows the columns. Documents are txt, md, html, pdf and docx files;
    each is a row with the columns path, text and pages. Several documents can be listed one by one.

    \b
        bros-batch submit invoices.xlsx --prompt "Who issued this? {Text}" --column "vendor: text"
        bros-batch submit contracts/ --prompt "Summarize: {text}"

    JSON lines may also be requests in OpenAI's batch format, without --prompt. With -o, the command waits for the job
    and writes the results to that file: .csv, .tsv, .xlsx, .parquet or .jsonl.
    """
    from rich.console import Console

    from bros_batch.client.added_columns import columns_format
    from bros_batch.client.answer_schema import response_format
    from bros_batch.client.bad_input import NoPrompt
    from bros_batch.client.submission import checked_lines, create_job, job_name, named_fields, source_object
    from bros_batch.text.template import parse_template
    from cli.jobs.table_source import opened_table

    if as_json and output == "-":
        raise click.UsageError("--json and -o - both print to stdout; use only one of them.")
    if dry_run and first is not None:
        raise click.UsageError("Use either --dry-run or --first: --first computes rows.")
    check_output(output)
    _check_not_input(output, [*sources, *click.get_current_context().meta.get(FILES, ())])
    given = {key: value for key, value in defaults.items() if value not in (None, ())}
    if schema is not None and columns:
        raise click.UsageError("Use either --schema or --column.")
    if schema is not None:
        given["response_format"] = response_format(schema)
    if columns:
        given["response_format"], explanation = columns_format(columns)
        if "prompt" in given:
            given["prompt"] += explanation
    body: dict[str, Any] = {
        "endpoint": endpoint,
        "completion_window": "24h",
        "name": name or job_name(sources),
        "priority": priority,
        "defaults": {**given, **({"model": model} if model else {})},
    }
    if deadline:
        body["deadline"] = deadline
    if fresh:
        body["fresh"] = True
    if notify:
        body["notify"] = notify
    with opened_table(sources, sheet, named_fields(given, id_field)) as table:
        spelled = partial(_spelled, schema_flag="--column" if columns else "--schema")
        try:
            lines = checked_lines(table, given, id_field, spelled, note)
        except NoPrompt as error:
            raise Failure(
                f"{error.problem} For example:\n\n{_example(sources, error.example)}", USAGE_ERROR
            ) from None
        body["source"] = source_object(table, job_name(sources), id_field)
        client.check_batch(body)
        if dry_run:
            show_forecast(client, lines, body, as_json)
            return
        batch = None
        if first is not None:
            taken = take_lines(lines, first)
            fields = parse_template(given["prompt"]).fields if "prompt" in given else []
            rest = take_lines(lines, 1)
            # Who is asked about the first rows need not be told of them.
            told = {name: value for name, value in body.items() if name != "notify" or not rest}
            batch = run_first_rows(client, taken, told, fields)
            if rest:
                if not yes:
                    confirm_all(batch, is_stdin="-" in sources)
                batch, lines = None, chain(taken, rest, lines)
        if batch is None:
            batch = create_job(client, lines, table, body, Console(stderr=True))
    if not wait and output is None:
        if as_json:
            print_json(batch)
        elif sys.stdout.isatty():
            click.echo(f"{batch['id']}\nbros-batch status {batch['id'][:12]} --watch   shows its progress")
        else:
            click.echo(batch["id"])  # JOB=$(bros-batch submit ...)
        return
    finish(client, batch, output, as_json)


def _example(sources: Sequence[str], prompt: str) -> str:
    """The command that computes the rows of these sources with a prompt, as it is typed."""
    source = shlex.join(sources)
    stem = "answers" if len(sources) > 1 or "-" in sources else f"{Path(sources[0]).stem}-answers"
    column = "answer: what you want to know"
    return (
        f"    bros-batch submit {source} --prompt {shlex.quote(prompt)} --first 5\n"
        f"    bros-batch submit {source} --prompt {shlex.quote(prompt)} -o {shlex.quote(stem + '.xlsx')}\n\n"
        f'--column "{column}" asks for a column, and can be repeated.'
    )


def _spelled(name: str, schema_flag: str) -> str:
    """Return the name of an option for a value of the job's defaults."""
    return schema_flag if name == "response_format" else f"--{name.replace('_', '-')}"


def _check_not_input(output: str | None, sources: Sequence[str]) -> None:
    for source in sources:
        if source == "-":
            check_not_input(output, sys.stdin.buffer, "the file on stdin")
        elif Path(source).is_file():
            with Path(source).open("rb") as file:
                check_not_input(output, file, source)
