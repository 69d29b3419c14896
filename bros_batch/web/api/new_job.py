"""From the body of `POST /v1/batches`, or the form of the dashboard, to a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import Field, StringConstraints
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from bros_batch.db import files, idempotency, jobs
from bros_batch.db.table_rows import File, IdempotencyKey, Job
from bros_batch.documents.column_types import MAX_TYPE_CHARS
from bros_batch.documents.form import DOCUMENT
from bros_batch.documents.item_requests import job_requests, prompt_fields
from bros_batch.documents.requested_model import HEAD_BYTES, check_requested_model
from bros_batch.model_names import ModelNames
from bros_batch.openai_api.endpoints import EndpointPath
from bros_batch.openai_api.validation import LenientPart, RequestPart
from bros_batch.request_error import RequestError
from bros_batch.web.api.durations import MAX_EXPIRY_S, MIN_EXPIRY_S, deadline_of, seconds_of
from bros_batch.web.api.idempotency_key import earlier_job
from bros_batch.web.app_state import app_state
from bros_batch.web.audit import log_change
from bros_batch.web.bulk_limits import announced_rows, check_bulk_limits
from bros_batch.web.errors import not_found
from bros_batch.web.notify_target import NotifyTarget, notify_target
from bros_batch.web.owners import owner_of, visible_owner

# PostgreSQL cannot store text that contains NUL.
PlainText = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
# As many columns as a sheet of Excel may have.
MAX_COLUMNS = 16_384
MAX_COLUMN_CHARS = 1024
TypeName = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=MAX_TYPE_CHARS)]
MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class OutputExpiry(RequestPart):
    """How long the output and error files are kept after they were made."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)


class Source(RequestPart):
    """The table that the documents of the input file came from, for whoever shows or writes the rows again."""

    name: PlainText | None = Field(None, max_length=1024)
    format: PlainText | None = Field(None, max_length=32)
    columns: list[PlainText] | None = Field(None, max_length=MAX_COLUMNS)
    id_field: PlainText | None = Field(None, min_length=1, max_length=MAX_COLUMN_CHARS)
    types: dict[PlainText, TypeName] | None = Field(None, max_length=MAX_COLUMNS)


class BatchRequest(LenientPart):
    """Body of `POST /v1/batches`. The fields from `name` on are our own."""

    input_file_id: PlainText = Field(max_length=64)
    endpoint: EndpointPath
    completion_window: str = Field("24h", max_length=16)
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    output_expires_after: OutputExpiry | None = None

    name: PlainText | None = Field(None, max_length=256)
    priority: int = Field(0, ge=-1_000_000, le=1_000_000)
    defaults: dict[str, Any] | None = None
    deadline: str | float | None = None
    source: Source | None = None
    fresh: bool = False
    notify: str | None = None


async def start_job(
    request: Request, body: BatchRequest, now_s: float, claimed: IdempotencyKey | None = None
) -> tuple[Job, bool]:
    """Check the request for a job, create it, and have its file read. Raises RequestError and ApiError.

    Returns the job, and whether another request has created it with the same key before.
    """
    state = app_state(request)
    terms = await job_terms(request, body, now_s)
    kept_for = body.output_expires_after
    seen = visible_owner(request)
    file = await state.read(lambda connection: input_file(connection, body.input_file_id, seen))
    if (body.defaults or {}).get("model") is None:
        await run_in_threadpool(_check_requested_model, file, state.settings.model_names, body)

    rows = await announced_rows(request, file)

    def query(connection: Connection) -> tuple[Job, bool]:
        if claimed is not None:
            idempotency.claim_key(connection, claimed)
            earlier = earlier_job(connection, claimed)
            if earlier is not None:
                return earlier, True
        check_bulk_limits(connection, request, rows)
        job = jobs.create_job(
            connection,
            input_file_id=input_file(connection, body.input_file_id, seen).id,
            endpoint=body.endpoint,
            model=terms.model,
            name=body.name,
            priority=body.priority,
            defaults=body.defaults,
            metadata=body.metadata,
            source=None if body.source is None else body.source.model_dump(exclude_none=True),
            deadline_at=terms.deadline_at,
            completion_window=body.completion_window,
            window_s=terms.window_s,
            output_expires_after_s=None if kept_for is None else kept_for.seconds,
            fresh=body.fresh,
            owner=owner_of(request),
            notify_url=terms.notify.url,
            notify_key_id=terms.notify.key_id,
            announced_rows=rows,
            job_id=None if claimed is None else claimed.job_id,
            now_s=now_s,
        )
        return job, False

    job, is_earlier = await state.write(query)
    if not is_earlier:
        log_change(request.scope, "job.created", job=job.id)
        state.dispatcher.send("ingest", job.id)
    return job, is_earlier


@dataclass(frozen=True, slots=True)
class JobTerms:
    """What the request for a job says about it, apart from its file."""

    model: str
    window_s: float
    deadline_at: float | None
    notify: NotifyTarget


async def job_terms(request: Request, body: BatchRequest, now_s: float) -> JobTerms:
    """Check all of a request for a job but its file. Raises RequestError."""
    window_s = _parsed("completion_window", seconds_of, body.completion_window)
    deadline_at = None
    if body.deadline is not None:
        deadline_at = _parsed("deadline", partial(deadline_of, now_s=now_s), body.deadline)
    names = app_state(request).settings.model_names
    model = checked_defaults(body.endpoint, body.defaults or {}, names)
    return JobTerms(model, window_s, deadline_at, await notify_target(request, body.notify))


def input_file(connection: Connection, file_id: str, owner: str | None) -> File:
    """The file that a job is made of. Raises an error for the client if it cannot be."""
    file = files.get_file(connection, file_id, owner)
    if file is None:
        raise not_found("file", file_id, "input_file_id")
    if file.purpose != "batch":
        message = f"The file '{file.id}' was not uploaded with the purpose 'batch'."
        raise RequestError(message, "input_file_id")
    return file


def _check_requested_model(file: File, models: ModelNames, body: BatchRequest) -> None:
    try:
        with Path(file.path).open("rb") as source:
            head = source.read(HEAD_BYTES)
    except OSError:
        return  # ingest says what is wrong with the file
    check_requested_model(head, models, prompt_fields(body.defaults or {}))


def _parsed(param: str, parse: Callable[[Any], float], value: str | float) -> float:
    try:
        return parse(value)
    except ValueError as error:
        raise RequestError(f"Invalid '{param}': it {error}.", param) from None


def checked_defaults(endpoint: EndpointPath, defaults: Mapping[str, Any], models: ModelNames) -> str:
    """Return the job's model. Raises RequestError if a document with the job's defaults is not a valid request.

    Without defaults, the lines may be requests of their own. Ingest says what is wrong if they are documents.
    """
    model = defaults.get("model") or models.served
    if not isinstance(model, str):
        raise RequestError("Invalid 'defaults.model': it must be a string.", "defaults.model")
    model = models.resolve(model, "defaults.model")
    has_options = any(value is not None for name, value in defaults.items() if name != "model")
    try:
        job_requests(endpoint, model, DOCUMENT if has_options else None, defaults)
    except RequestError as error:
        message = error.message.replace(f"'{error.param}'", f"'defaults.{error.param}'")
        raise RequestError(message, f"defaults.{error.param}", error.code) from None
    return model
