"""`/v1/batches`: create, list, look at, cancel, pause, resume, retry; and results at any time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field, StringConstraints
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from bros_batch.db import ended_items, engines, files, job_control, jobs
from bros_batch.db.states import WITHOUT_RESULT, IllegalTransition, ItemStatus, JobStatus
from bros_batch.db.tables import Job
from bros_batch.documents.item_requests import DOCUMENT, job_requests
from bros_batch.jobs.tasks import dispatch
from bros_batch.openai_api.batch_output import error_line, output_line
from bros_batch.openai_api.completion_requests import RequestError, RequestPart, validate
from bros_batch.web.api.batch_object import batch_object
from bros_batch.web.api.durations import deadline_of, seconds_of
from bros_batch.web.api.pagination import page_of
from bros_batch.web.app_state import WebServices, services_of
from bros_batch.web.errors import ApiError, JSONResponse, not_found
from bros_batch.web.request_body import read_body

ENGINE_SEEN_WITHIN_S = 60.0

router = APIRouter(prefix="/v1/batches")

# PostgreSQL has no text with a NUL in it.
PlainText = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class BatchRequest(RequestPart):
    """Body of `POST /v1/batches`; from `name` on, our own."""

    input_file_id: PlainText = Field(max_length=64)
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: str = Field("24h", max_length=16)
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    output_expires_after: Any = None

    name: PlainText | None = Field(None, max_length=256)
    priority: int = Field(0, ge=-1_000_000, le=1_000_000)
    defaults: dict[str, Any] | None = None
    deadline: str | float | None = None


@router.post("")
async def create_batch(request: Request) -> Response:
    services = services_of(request)
    wanted = validate(BatchRequest, await read_body(request, services.settings.max_body_bytes))
    now_s = time.time()
    window_s = _parsed("completion_window", seconds_of, wanted.completion_window)
    deadline_at = None
    if wanted.deadline is not None:
        deadline = wanted.deadline
        deadline_at = _parsed("deadline", lambda value: deadline_of(value, now_s), deadline)
    model = _checked_defaults(wanted, services.settings.model_name)

    def query(connection: Connection) -> Job:
        _check_model(connection, services, model, now_s)
        file = files.get_file(connection, wanted.input_file_id)
        if file is None:
            raise not_found("file", wanted.input_file_id, "input_file_id")
        if file.purpose != "batch":
            message = f"The file '{file.id}' was not uploaded with the purpose 'batch'."
            raise ApiError(400, message, param="input_file_id", code="invalid_request")
        return jobs.create_job(
            connection,
            input_file_id=file.id,
            endpoint=wanted.endpoint,
            model=model,
            name=wanted.name,
            priority=wanted.priority,
            defaults=wanted.defaults,
            metadata=wanted.metadata,
            deadline_at=deadline_at,
            completion_window=wanted.completion_window,
            window_s=window_s,
            now_s=now_s,
        )

    job = await services.write(query)
    await run_in_threadpool(dispatch, "ingest", job.id)
    return JSONResponse(batch_object(job))


def _parsed(param: str, parse: Callable[[Any], float], value: str | float) -> float:
    try:
        return parse(value)
    except ValueError as error:
        raise ApiError(400, f"Invalid '{param}': it {error}.", param=param, code="invalid_request") from None


def _checked_defaults(wanted: BatchRequest, served: str) -> str:
    """The model of the job; what documents are made into must be a request that could be served."""
    defaults = wanted.defaults or {}
    model = defaults.get("model") or served
    if not isinstance(model, str):
        raise RequestError("Invalid 'defaults.model': it must be a string.", "defaults.model")
    try:
        job_requests(wanted.endpoint, model, DOCUMENT, defaults)
    except RequestError as error:
        message = error.message.replace(f"'{error.param}'", f"'defaults.{error.param}'")
        raise RequestError(message, f"defaults.{error.param}", error.code) from None
    return model


def _check_model(connection: Connection, services: WebServices, model: str, now_s: float) -> None:
    """A job for a model that nobody serves would wait until it expires."""
    if model == services.settings.model_name:
        return
    serving = engines.list_engines(connection, seen_after=now_s - ENGINE_SEEN_WITHIN_S)
    if model not in {engine.model for engine in serving}:
        message = f"The model '{model}' is not served here; there is '{services.settings.model_name}'."
        raise ApiError(404, message, param="defaults.model", code="model_not_found")


@router.get("")
async def list_batches(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    status: JobStatus | None = None,
    search: str | None = None,
) -> Response:
    def query(connection: Connection) -> list[Job]:
        if after is not None and jobs.get_job(connection, after) is None:
            raise not_found("batch", after, "after")
        return jobs.list_jobs(connection, after=after, limit=limit + 1, status=status, search=search)

    found = await services_of(request).read(query)
    return JSONResponse(page_of([batch_object(job) for job in found], limit))


@router.get("/{batch_id}")
async def get_batch(request: Request, batch_id: str) -> Response:
    return JSONResponse(batch_object(await _find(services_of(request), batch_id)))


@router.post("/{batch_id}/cancel")
async def cancel_batch(request: Request, batch_id: str) -> Response:
    return JSONResponse(batch_object(await change_job(services_of(request), batch_id, "cancel")))


@router.post("/{batch_id}/pause")
async def pause_batch(request: Request, batch_id: str) -> Response:
    return JSONResponse(batch_object(await change_job(services_of(request), batch_id, "pause")))


@router.post("/{batch_id}/resume")
async def resume_batch(request: Request, batch_id: str) -> Response:
    return JSONResponse(batch_object(await change_job(services_of(request), batch_id, "resume")))


@router.post("/{batch_id}/retry")
async def retry_batch(request: Request, batch_id: str) -> Response:
    return JSONResponse(batch_object(await change_job(services_of(request), batch_id, "retry")))


Change = Literal["cancel", "pause", "resume", "retry"]
CHANGES: dict[Change, Callable[[Connection, str], Job]] = {
    "cancel": job_control.cancel_job,
    "pause": job_control.pause_job,
    "resume": job_control.resume_job,
    "retry": job_control.retry_job,
}


async def change_job(services: WebServices, job_id: str, change: Change) -> Job:
    """Move a job, and set to work whoever goes on with it. ApiError 404, or 409 where it cannot be moved so."""

    def query(connection: Connection) -> Job:
        try:
            return CHANGES[change](connection, job_id)
        except IllegalTransition as error:
            message = f"The batch '{job_id}' cannot be changed so: {error}."
            raise ApiError(409, message, param="batch_id", code="illegal_transition") from None
        except LookupError:
            raise not_found("batch", job_id, "batch_id") from None

    job = await services.write(query)
    if change == "cancel":
        await run_in_threadpool(dispatch, "finalize", job_id)
    elif change in ("resume", "retry"):
        await run_in_threadpool(dispatch, "prepare", job.model)
    return job


@router.get("/{batch_id}/results")
async def stream_results(
    request: Request,
    batch_id: str,
    status: Literal["succeeded", "failed"] = "succeeded",
    after_line: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> Response:
    """Lines of the output file (or of the error file) as far as they are known now, in input order: while the
    batch runs, and after it was cancelled or failed too."""
    services = services_of(request)
    await _find(services, batch_id)
    return StreamingResponse(_lines(services, batch_id, status, after_line), media_type="application/jsonl")


async def _lines(services: WebServices, job_id: str, status: str, after_line: int) -> AsyncIterator[str]:
    """In pages, so that no transaction lasts as long as a slow client."""
    wanted = (ItemStatus.SUCCEEDED,) if status == "succeeded" else tuple(WITHOUT_RESULT)

    def line_of(item: ended_items.EndedItem) -> str:
        if status == "succeeded":
            return output_line(item.id, item.epoch, item.custom_id, item.result)
        return error_line(item.id, item.custom_id, item.error_code, item.error_message)

    while True:

        def query(connection: Connection, after_line: int = after_line) -> list[ended_items.EndedItem]:
            return ended_items.ended_page(connection, job_id, after_line, ended_items.PAGE_ROWS, *wanted)

        page = await services.read(query)
        if not page:
            return
        yield "".join(map(line_of, page))
        after_line = page[-1].line_no


async def _find(services: WebServices, job_id: str) -> Job:
    job = await services.read(lambda connection: jobs.get_job(connection, job_id))
    if job is None:
        raise not_found("batch", job_id, "batch_id")
    return job
