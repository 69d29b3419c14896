"""`bros-batch ask`: put questions to every row of a file, and write the rows with the answers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from bros_batch.client.submission import job_name
from bros_batch.documents.readers.table import BadRow, Row
from bros_batch.openai_api.endpoints import DECISIONS
from bros_batch.request_error import RequestError
from bros_batch.text.template import Template, missing_field, parse_template
from cli.connection_options import connection_options
from cli.escapes import unescape
from cli.failure import USAGE_ERROR, Failure
from cli.jobs.questions import Question, choice, predicate, score
from cli.jobs.rows import check_suffix, written_rows
from cli.jobs.table_source import opened_table
from cli.notify_option import notify_option
from cli.output import note
from cli.output_file import check_not_input, check_output, write_lines
from cli.sheet_option import sheet_option
from cli.text_options import TEXT

if TYPE_CHECKING:
    from io import IOBase

    from bros_batch.client.http_client import Client

Values = dict[str, Any]

MAX_SHOWN_ERRORS = 5


@click.command()
@click.argument("source", metavar="FILE", type=click.Path())
@click.option(
    "--question",
    "predicates",
    type=TEXT,
    multiple=True,
    metavar="NAME:TEXT",
    help='Question whose answer is true or false, such as "urgent: Is this urgent?"; can be repeated.',
)
@click.option(
    "--choice",
    "choices",
    type=TEXT,
    multiple=True,
    metavar="NAME:A|B|C",
    help='Options to choose from, after a question if they need one, such as "team: Which team? billing|access"; '
    "can be repeated.",
)
@click.option(
    "--score",
    "scores",
    type=TEXT,
    multiple=True,
    metavar="NAME:1-5 TEXT",
    help='Rating on a scale, such as "quality: 1-5 How good is it?"; can be repeated.',
)
@click.option(
    "--prompt",
    type=TEXT,
    default="{text}",
    show_default=True,
    callback=unescape,
    help="Template for what the questions are about, with the columns in braces.",
)
@sheet_option
@click.option("--name", type=TEXT, show_default="the file name", help="Name of the job.")
@notify_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    required=True,
    help="Write to this file: .csv, .tsv or .jsonl.",
)
@connection_options
def ask(
    client: Client,
    source: str,
    predicates: Sequence[str],
    choices: Sequence[str],
    scores: Sequence[str],
    prompt: str,
    sheet: str | None,
    name: str | None,
    notify: str | None,
    output: str,
) -> None:
    """Answer questions about every row of FILE with probabilities.

    FILE is a table or a folder of documents, as for submit. The rows are written to the output file with further
    columns: for a question NAME its answer, the probability of the answer (NAME_probability), and
    the probabilities of all options (NAME_probabilities).

    \b
        bros-batch ask mails.csv --question "urgent: Is this urgent?" \\
            --choice "team: billing|access|sales" -o answers.csv
    """
    questions = [*map(predicate, predicates), *map(choice, choices), *map(score, scores)]
    if source == "-":
        raise click.UsageError("The rows are read twice, which stdin cannot be; save them as a file.")
    check_suffix(output)
    check_output(output)
    template = _parsed(prompt)
    columns, sheet = _columns(source, sheet, output, questions, template)
    _check_fields(template, source, columns)
    body = {
        "endpoint": DECISIONS,
        "completion_window": "24h",
        "name": name or job_name([source]),
        "defaults": {"prompt": "{text}", "questions": [question.body for question in questions]},
        **({"notify": notify} if notify else {}),
    }
    client.check_batch(body)
    problems: list[str] = []
    with tempfile.TemporaryFile() as documents:
        for line in _documents(source, sheet, template, problems):
            documents.write(line)
        if not documents.tell():
            raise Failure(problems[0] if problems else f"{source} has no rows.", USAGE_ERROR)
        documents.seek(0)
        file = client.upload("rows.jsonl", cast("IOBase", documents))
    job = _watched(client, client.create_batch({**body, "input_file_id": file["id"]}))
    answers = _answers(client, job["id"], questions)
    problems += _errors(client, job["id"])
    added = [column for question in questions for column in question.columns]
    rows = _with_answers(source, sheet, answers, added)
    count = write_lines(written_rows(output, rows, [*columns, *added]), output)
    header = 0 if output.lower().endswith((".jsonl", ".ndjson")) else 1
    note(f"{count - header} rows in {output}, {len(answers)} of them with answers")
    for problem in problems[:MAX_SHOWN_ERRORS]:
        note(problem)
    if job["status"] != "completed" or problems:
        raise Failure(f"{count - header - len(answers)} rows have no answers (job {job['id']}).")


def _columns(
    source: str, sheet: str | None, output: str, questions: Sequence[Question], template: Template
) -> tuple[list[str], str | None]:
    """Return the columns of the rows, and the name of the sheet they are read from if it is a workbook."""
    if not questions:
        raise click.UsageError("Ask at least one question: with --question, --choice or --score.")
    if Path(source).is_file():
        with Path(source).open("rb") as file:
            check_not_input(output, file, source)
    with opened_table([source], sheet, template.fields) as table:
        sheet = table.sheets[0] if table.sheets else sheet
        columns = table.columns or next((list(row.document) for row in table if isinstance(row, Row)), [])
    if not columns:
        raise Failure(f"{source} has no rows.", USAGE_ERROR)
    taken = list(columns)
    for column in (column for question in questions for column in question.columns):
        if column in taken:
            raise Failure(
                f"There are two columns named {column!r}; give the question another name.", USAGE_ERROR
            )
        taken.append(column)
    return columns, sheet


def _parsed(prompt: str) -> Template:
    try:
        return parse_template(prompt)
    except RequestError as error:
        raise Failure(f"--prompt: {error.message}", USAGE_ERROR) from None


def _check_fields(template: Template, source: str, columns: Sequence[str]) -> None:
    if not template.fields:
        raise Failure(
            "The --prompt contains no {column}, so every row would get the same answers. "
            f"The columns of {source}: {', '.join(columns[:20])}.",
            USAGE_ERROR,
        )
    for field in template.fields:
        if field not in columns:
            problem = missing_field(field, dict.fromkeys(columns))
            raise Failure(
                f'{source}: {problem} Choose columns with --prompt, such as "{{{columns[0]}}}".', USAGE_ERROR
            )


def _documents(source: str, sheet: str | None, template: Template, problems: list[str]) -> Iterator[bytes]:
    """Yield a document per row, whose id is the number of the row. What is wrong with others goes to `problems`."""
    with opened_table([source], sheet, quiet=True) as table:
        for row in table:
            if isinstance(row, BadRow):
                problems.append(row.message)
                continue
            try:
                text = template.render(row.document, row.number)
            except RequestError as error:
                problems.append(error.message)
            else:
                document = {"custom_id": str(row.number), "text": text}
                yield json.dumps(document, ensure_ascii=False).encode() + b"\n"


def _watched(client: Client, batch: dict[str, Any]) -> dict[str, Any]:
    from rich.console import Console

    from bros_batch.client.progress import follow

    try:
        return follow(client, batch, Console(stderr=True))
    except KeyboardInterrupt:
        note(f"The job continues to run. To fetch its results: bros-batch results {batch['id']}")
        raise


def _answers(client: Client, job: str, questions: Sequence[Question]) -> dict[int, Values]:
    """Return the columns to add, by the number of the row."""
    found: dict[int, Values] = {}
    for line in client.result_lines(job, "succeeded"):
        result = json.loads(line)
        answers = result["response"]["body"]["answers"]
        values: Values = {}
        for question, answer in zip(questions, answers, strict=True):
            values |= question.values(answer)
        found[int(result["custom_id"])] = values
    return found


def _errors(client: Client, job: str) -> list[str]:
    lines = (json.loads(line) for line in client.result_lines(job, "failed"))
    return [f"Row {line['custom_id']}: {line['error']['message']}" for line in lines]


def _with_answers(
    source: str, sheet: str | None, answers: dict[int, Values], added: Sequence[str]
) -> Iterator[Values]:
    nothing = dict.fromkeys(added)
    with opened_table([source], sheet, quiet=True) as table:
        for row in table:
            if isinstance(row, Row):
                yield {**row.document, **answers.get(row.number, nothing)}
