"""A job as a file, by which it moves to another server: a line about the job, a line for each row, and a last line.

The last line has the counts of the rows above it, so that a file that was cut short, or changed, is recognized. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import SEEK_END, BufferedReader
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from bros_batch.documents.form import BATCH, DOCUMENT, MAX_CUSTOM_ID_CHARS
from bros_batch.documents.json_object import json_object
from bros_batch.request_error import RequestError

# What `ingest_form` says of a job while it is read from such a file.
JOB_FILE: Final = "job file"
FORMAT: Final = "bros-batch job"
VERSION: Final = 1
# With which only the last line begins.
END: Final = b'{"end":'
_MAX_END_BYTES = 4096
MAX_HEAD_BYTES = 32 * 1024**2
# Several times what a line of an input file may have: a row also has its result, and both are escaped.
MAX_ROW_BYTES = 256 * 1024**2

# PostgreSQL cannot store text that contains NUL.
_Text = Annotated[str, Meta(pattern=r"^[^\x00]*\Z")]
_Short = Annotated[str, Meta(pattern=r"^[^\x00]*\Z", max_length=2000)]
_Count = Annotated[int, Meta(ge=0, lt=2**31)]
_Tokens = Annotated[int, Meta(ge=0, lt=2**53)]
_Time = Annotated[float, Meta(ge=0, le=1e11)]
_T = TypeVar("_T")


class JobError(msgspec.Struct, frozen=True):
    """What was wrong with a line of the job's own input file, or with all of it."""

    code: _Short
    line: int | None
    message: _Text
    param: _Text | None


class LoggedEvent(msgspec.Struct, frozen=True):
    at: _Time
    kind: Annotated[str, Meta(pattern=r"^[a-z_]{1,16}\Z")]
    total: _Count
    succeeded: _Count
    without_result: _Count


class ExportedJob(msgspec.Struct, frozen=True):
    """What is stored about a job, apart from what its rows say and from what concerns only the server it was on."""

    id: _Short
    name: _Short | None
    status: Literal[
        "failed", "in_progress", "paused", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    endpoint: _Short
    model: _Short
    priority: int
    defaults: dict[str, Any]
    metadata: dict[str, Any] | None
    source: dict[str, Any] | None
    errors: Annotated[list[JobError], Meta(max_length=100)]
    fresh: bool
    completion_window: Annotated[str, Meta(max_length=16)]
    output_expires_after_s: _Time | None
    deadline_at: _Time | None
    created_at: _Time
    expires_at: _Time
    in_progress_at: _Time | None
    paused_at: _Time | None
    finalizing_at: _Time | None
    completed_at: _Time | None
    failed_at: _Time | None
    expired_at: _Time | None
    cancelling_at: _Time | None
    cancelled_at: _Time | None
    ingest_form: Literal["batch", "document"] | None
    cached_tokens: _Tokens
    reused: _Count
    reused_prompt_tokens: _Tokens
    reused_output_tokens: _Tokens


class JobHead(msgspec.Struct, frozen=True):
    """The first line."""

    format: Literal["bros-batch job"]
    version: Literal[1]
    job: ExportedJob
    events: Annotated[list[LoggedEvent], Meta(max_length=200)]


class StoredRow(msgspec.Struct, frozen=True):
    """A row as it is stored. `body` and `result` are JSON text, kept to the character."""

    row: Annotated[int, Meta(ge=1, lt=2**31)]
    custom_id: Annotated[str, Meta(pattern=r"^[^\x00]+\Z", max_length=MAX_CUSTOM_ID_CHARS)] | None
    status: Literal["pending", "queued", "succeeded", "failed", "cancelled", "expired"]
    attempts: _Count
    epoch: _Count
    body: _Text | None
    result: _Text | None
    error_code: Annotated[str, Meta(pattern=r"^[^\x00]*\Z", max_length=64)] | None
    error_message: _Text | None
    prompt_tokens: _Count
    output_tokens: _Count
    queued_at: _Time | None
    finished_at: _Time | None


@dataclass(slots=True)
class RowCounts:
    """The counts of the rows so far, and the number of the last one. The last line of a file has them as `end`."""

    last_row: int = 0
    total: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    def add(self, row: StoredRow) -> None:
        """Count a row. Raises RequestError if it does not follow the one before."""
        if row.row <= self.last_row:
            raise RequestError(f"row {row.row} follows row {self.last_row}.")
        self.last_row = row.row
        self.total += 1
        if row.status not in ("pending", "queued"):
            setattr(self, row.status, getattr(self, row.status) + 1)
        self.prompt_tokens += row.prompt_tokens
        self.output_tokens += row.output_tokens

    def check_end(self, end: RowCounts) -> None:
        """Raise RequestError unless the rows are those that the last line tells of."""
        if self != end:
            raise RequestError(f"its rows are {_words(self)}, but it should have {_words(end)}.")


class JobEnd(msgspec.Struct, frozen=True):
    """The last line."""

    end: RowCounts


def read_head(line: bytes) -> JobHead:
    """The first line. Raises RequestError, also for a file of another version or kind."""
    value = json_object(line)
    if value.get("format") != FORMAT:
        raise RequestError("this is not an exported job.")
    if value.get("version") != VERSION:
        raise RequestError(
            f"it has version {value.get('version')!r} of the format, and this bros-batch reads version {VERSION}; "
            "use the same version of bros-batch on both servers."
        )
    return _converted(value, JobHead)


def read_line(line: bytes, form: str) -> StoredRow | JobEnd:
    """A line after the first, of a job with rows of this form. Raises RequestError for one that nobody has exported."""
    if line.startswith(END):
        return _converted(json_object(line), JobEnd)
    row = _decoded_row(line)
    if row.body is not None:
        _check_object(row.body, "body")
        if form == DOCUMENT:
            _check_document(row.body)
    if row.result is not None:
        _check_object(row.result, "result")
    if row.body is None and row.status != "failed":
        raise RequestError("'body' is missing.")
    if row.status == "succeeded" and (row.result is None or row.error_code is not None):
        raise RequestError("a row that succeeded has a 'result' and no error.")
    if row.status in ("failed", "cancelled", "expired") and row.error_code is None:
        raise RequestError(f"a row that is {row.status} has an 'error_code'.")
    return row


def unfinished_rows(source: BufferedReader) -> int:
    """The rows of a file that have yet to be computed, by its last line; 0 if that is damaged."""
    source.seek(max(source.seek(0, SEEK_END) - _MAX_END_BYTES, 0))
    last = source.read().rstrip(b"\n").rpartition(b"\n")[2]
    try:
        end = msgspec.json.decode(last, type=JobEnd).end
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 0
    return max(end.total - end.succeeded - end.failed - end.cancelled - end.expired, 0)


def form_of_rows(head: JobHead) -> str:
    return DOCUMENT if head.job.ingest_form == DOCUMENT else BATCH


def _decoded_row(line: bytes) -> StoredRow:
    try:
        return _decode_row(line)
    except msgspec.ValidationError as error:
        raise RequestError(f"{_lowered(str(error))}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        json_object(line)  # says what is wrong
        raise RequestError("this is not valid JSON.") from None


def _check_object(text: str, name: str) -> None:
    """Raise RequestError unless a text can stand on a line of JSON lines as an object."""
    try:
        _checked_json(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise RequestError(f"'{name}' is not valid JSON.") from None
    if not text.lstrip().startswith("{") or "\n" in text:
        raise RequestError(f"'{name}' is not a JSON object on one line.")


def _check_document(text: str) -> None:
    try:
        json_object(text.encode())
    except RequestError as error:
        raise RequestError(f"'body': {error.message}") from None


def _converted(value: object, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RequestError(f"{_lowered(str(error))}.") from None


def _words(counts: RowCounts) -> str:
    return (
        f"{counts.total} up to number {counts.last_row}, {counts.succeeded} succeeded, {counts.failed} failed, "
        f"{counts.cancelled} cancelled, {counts.expired} expired, with {counts.prompt_tokens} tokens in and "
        f"{counts.output_tokens} out"
    )


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


_decode_row = msgspec.json.Decoder(StoredRow).decode
_checked_json = msgspec.json.Decoder(msgspec.Raw).decode
