"""`/v1/batches/{id}/export` and `/v1/batches/import`: a job with everything, from one server to another."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from bros_batch.db import imported_jobs, job_events
from bros_batch.db.jobs import get_job
from bros_batch.db.rows import RowQuery, rows_page
from bros_batch.db.states import ENDED_JOB, JobStatus
from bros_batch.db.table_rows import File, Job
from bros_batch.documents.job_file import (
    FORMAT,
    MAX_HEAD_BYTES,
    VERSION,
    ExportedJob,
    JobEnd,
    JobError,
    JobHead,
    LoggedEvent,
    RowCounts,
    StoredRow,
    read_head,
)
from bros_batch.model_names import ModelNames
from bros_batch.openai_api.validation import LenientPart, validate
from bros_batch.request_error import RequestError
from bros_batch.web.api.batch_object import batch_object
from bros_batch.web.api.new_job import BatchRequest, PlainText, checked_defaults, input_file
from bros_batch.web.api.rows import NDJSON, STREAMED_ROWS, check_rows
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.audit import log_change
from bros_batch.web.bulk_limits import announced_rows, check_bulk_limits
from bros_batch.web.errors import ApiError, JSONResponse, not_found
from bros_batch.web.owners import owner_of, visible_owner

router = APIRouter(prefix="/v1/batches")

# The fields of an exported job that the body of a new one has, too.
_CHECKED = ("endpoint", "completion_window", "metadata", "name", "priority", "defaults", "source", "fresh")
_COUNTED = ("total", "succeeded", "without_result")


class ImportRequest(LenientPart):
    """Body of `POST /v1/batches/import`: a file of what `GET /v1/batches/{id}/export` has returned."""

    input_file_id: PlainText = Field(max_length=64)


@router.get("/{batch_id}/export")
async def export_batch(request: Request, batch_id: str) -> Response:
    """Stream a job with all that is stored about it and its rows as JSON lines, for `POST /v1/batches/import`."""
    state, seen = app_state(request), visible_owner(request)

    def query(connection: Connection) -> bytes:
        job = _job(connection, batch_id, seen)
        if job.status == JobStatus.VALIDATING:
            message = f"The input of the batch '{batch_id}' is still being read. Export it once it runs."
            raise ApiError(409, message, param="batch_id", code="illegal_transition")
        return msgspec.json.encode(_head(connection, job)) + b"\n"

    head = await state.read(query)
    return StreamingResponse(_lines(state, batch_id, head, seen), media_type=NDJSON)


@router.post("/import")
async def import_batch(request: Request) -> Response:
    """Create a job from an exported one. It continues where that was; importing a file twice makes two jobs."""
    state, seen = app_state(request), visible_owner(request)
    body = await state.parsed(request, lambda raw: validate(ImportRequest, raw))
    file = await state.read(lambda connection: input_file(connection, body.input_file_id, seen))
    exported = (await run_in_threadpool(_read_head, file)).job
    model = _checked_model(exported, state.settings.model_names)

    rows = await announced_rows(request, file, is_exported=True)

    def query(connection: Connection) -> Job:
        check_bulk_limits(connection, request, rows)
        input_file(connection, file.id, seen)
        owner = owner_of(request)
        return imported_jobs.create_imported_job(
            connection, exported, model, file.id, time.time(), owner, rows
        )

    job = await state.write(query)
    log_change(request.scope, "job.imported", job=job.id)
    state.dispatcher.send("ingest", job.id)
    return JSONResponse(batch_object(job))


def _checked_model(exported: ExportedJob, models: ModelNames) -> str:
    """The model that the job has here. Raises RequestError for a job that could not have been created here.

    The rows of a job that has ended may be read without its model.
    """
    fields = {name: value for name in _CHECKED if (value := getattr(exported, name)) is not None}
    new = validate(BatchRequest, msgspec.json.encode({**fields, "input_file_id": ""}))
    if exported.status in ENDED_JOB:
        return exported.model
    checked_defaults(new.endpoint, new.defaults or {}, models)
    return models.resolve(exported.model)


def _read_head(file: File) -> JobHead:
    try:
        with Path(file.path).open("rb") as source:
            line = source.readline(MAX_HEAD_BYTES)
    except OSError as error:
        message = f"The file '{file.id}' cannot be read: {error.strerror}."
        raise RequestError(message, "input_file_id") from None
    try:
        return read_head(line)
    except RequestError as error:
        message = f"The file '{file.id}' cannot be imported: {error.message}"
        raise RequestError(message, "input_file_id") from None


def _job(connection: Connection, job_id: str, owner: str | None) -> Job:
    job = get_job(connection, job_id, owner)
    if job is None or not job.has_file:
        raise not_found("batch", job_id, "batch_id")
    check_rows(job)
    return job


def _head(connection: Connection, job: Job) -> JobHead:
    values: dict[str, Any] = {name: getattr(job, name) for name in ExportedJob.__struct_fields__}
    values["errors"] = [msgspec.convert(error, JobError) for error in job.errors]
    events = [
        LoggedEvent(event.at, event.kind, **{name: int(event.detail.get(name, 0)) for name in _COUNTED})
        for event in job_events.list_events(connection, job.id)
        if event.kind != "webhook"  # of this server
    ]
    return JobHead(FORMAT, VERSION, ExportedJob(**values), events)


async def _lines(state: AppState, job_id: str, head: bytes, owner: str | None) -> AsyncIterator[bytes]:
    """Yield the lines page by page, so that no transaction stays open while a slow client reads.

    The counts in the last line are those of the rows as they were read, since the job may be running meanwhile. If the
    rows are removed meanwhile, the stream breaks, and the last line is missing.
    """
    yield head
    encoder = msgspec.json.Encoder()
    counts = RowCounts()
    next_after: int | None = 0
    while next_after is not None:

        def query(connection: Connection, after: int = next_after) -> tuple[bytes, int | None]:
            page = rows_page(connection, _job(connection, job_id, owner), RowQuery(after, STREAMED_ROWS))
            rows = [
                StoredRow(row.line_no, *(getattr(row, name) for name in StoredRow.__struct_fields__[1:]))
                for row in page.rows
            ]
            for row in rows:
                counts.add(row)
            return encoder.encode_lines(rows), page.next_after

        lines, next_after = await state.read(query)
        if lines:
            yield lines
    yield encoder.encode(JobEnd(counts)) + b"\n"
