"""From the arguments of a call to a job on the server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bros_batch.client.added_columns import columns_format
from bros_batch.client.answer_schema import Schema, response_format
from bros_batch.client.bad_input import BadInput
from bros_batch.client.http_client import Client as HttpClient
from bros_batch.client.progress import visible_console
from bros_batch.client.submission import checked_lines, create_job, job_name, named_fields, source_object
from bros_batch.documents.readers.open_table import open_table
from bros_batch.documents.readers.table import Table, UnreadableTable
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS, DECISIONS
from bros_batch.python.answers import Answers, Asked, with_answers
from bros_batch.python.options import JOB_OPTIONS, REQUEST_OPTIONS, check_names, given
from bros_batch.python.questions import Questions, api_questions
from bros_batch.python.sources import Source, source_of
from bros_batch.python.warn_caller import warn_caller
from bros_batch.webhook_url import check_webhook_url


@dataclass(frozen=True, slots=True)
class Work:
    """The body of a job's creation without its input, and what it asks about each row."""

    body: dict[str, Any]
    asked: Asked

    @classmethod
    def of_arguments(
        cls,
        prompt: str | None,
        schema: Schema | None,
        columns: Mapping[str, str] | Sequence[str] | None,
        questions: Questions | None,
        options: Mapping[str, Any],
    ) -> Work:
        """Check the arguments of a call. Raises BadInput, and TypeError for an option that does not exist."""
        check_names(options)
        shapes = {"schema": schema, "columns": columns, "questions": questions}
        used = [name for name, value in shapes.items() if value is not None]
        if len(used) > 1:
            raise BadInput(f"Use only one of {' and '.join(used)}.")
        defaults = given(options, REQUEST_OPTIONS)
        if prompt is not None:
            defaults["prompt"] = prompt
        if schema is not None:
            defaults["response_format"] = response_format(schema)
        if columns is not None:
            words = (
                [f"{name}: {text}" for name, text in columns.items()]
                if isinstance(columns, Mapping)
                else columns
            )
            defaults["response_format"], explanation = columns_format(words)
            if prompt is not None:
                defaults["prompt"] = prompt + explanation
        if questions is not None:
            defaults["questions"] = api_questions(questions)
        if (notify := options.get("notify")) is not None:
            try:
                check_webhook_url(notify)
            except ValueError as error:
                raise BadInput(f"notify: the URL {notify!r} {error}.") from None
        body = {
            "endpoint": CHAT_COMPLETIONS if questions is None else DECISIONS,
            "completion_window": "24h",
            **given(options, JOB_OPTIONS),
            "defaults": defaults,
        }
        return cls(body, Asked.of_job(body, schema if isinstance(schema, type) else None))


def submitted(
    client: HttpClient,
    table: str | Path | Source,
    work: Work,
    options: Mapping[str, Any],
    progress: bool,
) -> dict[str, Any]:
    """Check, upload and submit a table. Returns the batch object of its job. Raises BadInput and OSError."""
    body, id_field = work.body, options.get("id_field")
    with _opened(table, options.get("sheet"), named_fields(body["defaults"], id_field)) as opened:
        source_name = job_name([str(table)]) if isinstance(table, str | Path) else opened.name
        name = body.get("name") or source_name
        checked = {key: value for key, value in body["defaults"].items() if key != "model"}
        lines = checked_lines(opened, checked, id_field, str, lambda warning: None)
        source = source_object(opened, source_name, id_field)
        body = {**body, "name": name, "source": source}
        client.check_batch(body)
        console = visible_console() if progress else None
        return create_job(client, lines, opened, body, console)


def without_rows(table: Any, work: Work) -> Any:
    """Return a table that has no rows with the columns of the answers."""
    return with_answers(source_of(table), work.asked, Answers([], []))


@contextmanager
def _opened(table: str | Path | Source, sheet: str | None, fields: Sequence[str]) -> Iterator[Table]:
    if not isinstance(table, str | Path):
        yield table.table()
        return
    try:
        with open_table(table, sheet=sheet, fields=fields) as opened:
            for sentence in opened.notes:
                warn_caller(f"{opened.name}: {sentence}")
            if sheet is None and len(opened.sheets) > 1:
                warn_caller(f"To read another sheet, pass sheet={opened.sheets[1]!r}.")
            yield opened
    except UnreadableTable as error:
        raise BadInput(str(error)) from None
