"""A row of a job as the API shows it."""

from __future__ import annotations

from typing import Any

import msgspec

from bros_batch.db.rows import ItemRow
from bros_batch.db.table_rows import Job
from bros_batch.documents.row_contents import RowContents
from bros_batch.documents.row_request import row_request
from bros_batch.request_error import RequestError


class RowError(msgspec.Struct):
    """Why a row has no answer."""

    code: str
    message: str | None


class RowObject(msgspec.Struct):
    """A row with its document and its answer. Times are in Unix seconds, and `attempts` counts how often it began.

    `raw_answer` is only there if the model's output is not the answer that was asked for, such as JSON that was cut.
    """

    row: int
    id: str | None
    status: str
    document: msgspec.Raw | None
    answer: Any
    error: RowError | None
    prompt_tokens: int
    output_tokens: int
    attempts: int
    queued_at: float | None
    finished_at: float | None
    raw_answer: Any = msgspec.UNSET


class WholeRow(RowObject):
    """A row with all that is known about it. `prompt` is the job's template with the document in it."""

    prompt: str | None = None
    request: Any = None
    response: msgspec.Raw | None = None


def contents_of(job: Job) -> RowContents:
    """How the rows of a job are read."""
    return RowContents(job.endpoint, job.ingest_form, job.defaults, (job.source or {}).get("id_field"))


def row_object(row: ItemRow, contents: RowContents) -> RowObject:
    """Return the row for a list or a stream."""
    return RowObject(*_fields(row, contents))


def whole_row(row: ItemRow, job: Job) -> WholeRow:
    """Return the row with its request and its response."""
    shown = WholeRow(*_fields(row, contents_of(job)))
    if row.body is not None:
        try:
            request = row_request(
                job.endpoint, job.model, job.ingest_form, job.defaults, row.body, row.line_no
            )
            shown.prompt, shown.request = request.prompt, request.body
        except RequestError:
            pass  # the error of the row says it
    if row.result is not None:
        shown.response = msgspec.Raw(row.result)
    return shown


def contains(row: ItemRow, contents: RowContents, search: str) -> bool:
    """Whether the document, the answer, the id or the error of a row contains a text, in whichever case of letters."""
    wanted = search.casefold()
    texts = (row.custom_id, row.error_message, row.error_code)
    if any(wanted in text.casefold() for text in texts if text):
        return True
    return any(
        wanted in text.casefold()
        for value in (
            contents.document(row.body, row.custom_id, row.line_no),
            *contents.answer(row.body, row.result),
        )
        for text in _texts(value)
    )


def _texts(value: Any) -> list[str]:
    """The texts of a value in JSON that its readers see: all strings and numbers, without the names of fields."""
    if isinstance(value, msgspec.Raw):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, RecursionError):
            return []
    texts, waiting = [], [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, msgspec.Raw):
            waiting.append(msgspec.json.decode(value))
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif value is not None:
            texts.append(value if isinstance(value, str) else msgspec.json.encode(value).decode())
    return texts


def _fields(row: ItemRow, contents: RowContents) -> tuple[Any, ...]:
    error = None if row.error_code is None else RowError(row.error_code, row.error_message)
    answer, raw_answer = contents.answer(row.body, row.result, is_error=error is not None)
    return (
        row.line_no,
        row.custom_id,
        row.status,
        contents.document(row.body, row.custom_id, row.line_no),
        answer,
        error,
        row.prompt_tokens,
        row.output_tokens,
        row.attempts + (row.queued_at is not None),
        row.queued_at,
        row.finished_at,
        msgspec.UNSET if raw_answer is None else raw_answer,
    )
