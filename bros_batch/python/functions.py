"""The functions of the package: those of a client of the server that runs here, or that BROS_URL names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Unpack, overload

from bros_batch.client.answer_schema import Schema
from bros_batch.python.client import AnyFrame, Client, Columns
from bros_batch.python.options import JobOptions
from bros_batch.python.questions import Questions


@overload
def map(
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
def map(table: Any, prompt: str | None = None, **arguments: Any) -> Any:
    """Put each row of a table into a prompt, and return the table with the columns of the answers. See `Client.map`."""
    with Client() as client:
        return client.map(table, prompt, **arguments)


async def map_async(table: Any, prompt: str | None = None, **arguments: Any) -> Any:
    """Do what `map` does, while the event loop does other work. See `Client.map_async`."""
    with Client() as client:
        return await client.map_async(table, prompt, **arguments)


def ask(table: Any, questions: Questions, prompt: str = "{text}", **arguments: Any) -> Any:
    """Answer questions about each row of a table with probabilities. See `Client.ask`."""
    with Client() as client:
        return client.ask(table, questions, prompt, **arguments)
