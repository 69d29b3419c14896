"""A client of the server: tables in, columns out, and chat."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from bros_batch.client.answer_schema import Schema
from bros_batch.client.bad_input import NoRows
from bros_batch.client.http_client import Client as HttpClient
from bros_batch.client.server_url import KEY_VARIABLE, server_url
from bros_batch.python.chat import chat_answer
from bros_batch.python.job import Job
from bros_batch.python.options import JobOptions
from bros_batch.python.output import check_output
from bros_batch.python.questions import Questions
from bros_batch.python.sources import Frame, source_of
from bros_batch.python.submission import Work, submitted, without_rows

if TYPE_CHECKING:
    from pydantic import BaseModel

Columns = Mapping[str, str] | Sequence[str]
AnyFrame = TypeVar("AnyFrame", bound=Frame)
Model = TypeVar("Model", bound="BaseModel")


class Client:
    """A client of one bros-batch server.

    Without `url`, it uses the variable BROS_URL, or else the server that runs on `./bros-data`, or else
    `http://127.0.0.1:8000`. Without `api_key`, it uses the variable BROS_API_KEY. Use it as a context manager, or
    `close` it, to end its connections.

    Every method raises ServiceUnreachable if no server responds, and ServiceError if the server refuses a request.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        self._http = HttpClient(server_url(url), api_key or os.environ.get(KEY_VARIABLE))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    @property
    def url(self) -> str:
        """The URL of the server."""
        return self._http.url

    def close(self) -> None:
        """End the connections to the server. Jobs continue to run."""
        self._http.close()

    def submit(
        self,
        table: Any,
        prompt: str | None = None,
        *,
        schema: Schema | None = None,
        columns: Columns | None = None,
        questions: Questions | None = None,
        progress: bool = True,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Submit a table as a job, and return the job without waiting for it. The arguments are those of `map`."""
        work = Work.of_arguments(prompt, schema, columns, questions, options)
        source = table if isinstance(table, str | Path) else source_of(table)
        batch = submitted(self._http, source, work, options, progress)
        return Job(self._http, batch, None if isinstance(source, str | Path) else source, work.asked)

    @overload
    def map(
        self,
        table: str | Path,
        prompt: str | None = None,
        *,
        schema: Schema | None = None,
        columns: Columns | None = None,
        questions: Questions | None = None,
        output: None = None,
        progress: bool = True,
        **options: Unpack[JobOptions],
    ) -> list[dict[str, Any]]: ...
    @overload
    def map(
        self,
        table: AnyFrame,
        prompt: str | None = None,
        *,
        schema: Schema | None = None,
        columns: Columns | None = None,
        questions: Questions | None = None,
        output: None = None,
        progress: bool = True,
        **options: Unpack[JobOptions],
    ) -> AnyFrame: ...
    @overload
    def map(
        self,
        table: Iterable[Any],
        prompt: str | None = None,
        *,
        schema: Schema | None = None,
        columns: Columns | None = None,
        questions: Questions | None = None,
        output: None = None,
        progress: bool = True,
        **options: Unpack[JobOptions],
    ) -> list[Any]: ...
    @overload
    def map(
        self,
        table: Any,
        prompt: str | None = None,
        *,
        schema: Schema | None = None,
        columns: Columns | None = None,
        questions: Questions | None = None,
        output: str | Path,
        progress: bool = True,
        **options: Unpack[JobOptions],
    ) -> Path: ...
    def map(
        self,
        table: Any,
        prompt: str | None = None,
        *,
        schema: Schema | None = None,
        columns: Columns | None = None,
        questions: Questions | None = None,
        output: str | Path | None = None,
        progress: bool = True,
        **options: Unpack[JobOptions],
    ) -> Any:
        """Put each row of a table into a prompt, and return the table with the columns of the answers.

        `table` is the path or URL of a table or of documents, a data frame of pandas or polars, a table of pyarrow, or
        an iterable of dicts or of texts. The result is of the same kind, with the rows in the same order: a path gives
        a list of dicts, and texts give a list of their answers. With `output`, the result is written to that file
        instead (.csv, .tsv, .xlsx, .parquet, .jsonl), and its path is returned.

        `prompt` is a template: `{name}` stands for the column of that name, and for `{text}` the texts are put in.
        What is asked for is text, unless one of these is given:

        * `schema`: a pydantic model, a JSON schema, or the name of a file with one. Its properties become columns.
          Rows that are dicts or texts get objects of the pydantic model.
        * `columns`: columns to add in words, such as `{"vendor": "who issued it", "total": "number, with tax"}`.
        * `questions`: see `ask`.

        `options` are those of JobOptions. Rows without an answer have None, and a message in the column `_error`; the
        warning RowsFailed says how many there are. After Ctrl-C, the job continues to run, and a message says how to
        get its result later.
        """
        if output is not None:
            check_output(output, table)
        shape: Any = {"schema": schema, "columns": columns, "questions": questions}
        try:
            job = self.submit(table, prompt, **shape, progress=progress, **options)
        except NoRows:
            if output is not None or isinstance(table, str | Path):
                raise
            return without_rows(table, Work.of_arguments(prompt, **shape, options=options))
        return job.result(output, progress=progress)

    async def map_async(
        self,
        table: Any,
        prompt: str | None = None,
        *,
        schema: Schema | None = None,
        columns: Columns | None = None,
        questions: Questions | None = None,
        output: str | Path | None = None,
        progress: bool = True,
        **options: Unpack[JobOptions],
    ) -> Any:
        """Do what `map` does, while the event loop does other work. If it is cancelled, the job continues to run."""
        if output is not None:
            check_output(output, table)
        shape: Any = {"schema": schema, "columns": columns, "questions": questions}
        try:
            job = await asyncio.to_thread(self.submit, table, prompt, **shape, progress=progress, **options)
        except NoRows:
            if output is not None or isinstance(table, str | Path):
                raise
            return without_rows(table, Work.of_arguments(prompt, **shape, options=options))
        return await job.result_async(output, progress=progress)

    def ask(
        self,
        table: Any,
        questions: Questions,
        prompt: str = "{text}",
        *,
        output: str | Path | None = None,
        progress: bool = True,
        **options: Unpack[JobOptions],
    ) -> Any:
        """Answer questions about each row of a table, and return the table with the answers and their probabilities.

        `questions` has the name of a column for each question, and what is asked:

        * a text is true or false: `{"urgent": "Is this urgent?"}`
        * a list is a choice: `{"team": ["billing", "access"]}`
        * a range is a score: `{"quality": range(1, 6)}`
        * a pair asks with a text: `{"team": ("Which team?", ["billing", "access"])}`
        * a dict is a question of `/v1/decisions`.

        A question `NAME` adds the columns `NAME` and `NAME_probability`. `prompt` is the template for what the
        questions are about. The other arguments and the result are those of `map`.
        """
        return self.map(table, prompt, questions=questions, output=output, progress=progress, **options)

    @overload
    def chat(
        self,
        message: str | Sequence[Mapping[str, Any]],
        *,
        schema: None = None,
        system: str | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> str: ...
    @overload
    def chat(
        self,
        message: str | Sequence[Mapping[str, Any]],
        *,
        schema: type[Model],
        system: str | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Model: ...
    @overload
    def chat(
        self,
        message: str | Sequence[Mapping[str, Any]],
        *,
        schema: Mapping[str, Any] | str | Path,
        system: str | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Any: ...
    def chat(
        self,
        message: str | Sequence[Mapping[str, Any]],
        *,
        schema: Schema | None = None,
        system: str | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Any:
        """Send a message, or a list of messages, in the fast lane, and return the answer.

        The answer is text; with a `schema` it is an object of the pydantic model, or the JSON value. `on_text` is
        called with each piece of the answer as it arrives. `options` are parameters of a chat completion, such as
        `model`, `max_tokens` and `temperature`. Raises InvalidAnswer if the answer was cut and is not JSON.
        """
        return chat_answer(self._http, message, schema, system, on_text, options)

    def jobs(self, limit: int = 20) -> list[Job]:
        """Return the newest jobs, newest first."""
        return [Job(self._http, batch) for batch in self._http.batches(limit)]

    def job(self, reference: str) -> Job:
        """Return a job by its id, by the beginning of its id, or the newest for `last`. Raises LookupError."""
        return Job(self._http, self._http.find_batch(reference))
