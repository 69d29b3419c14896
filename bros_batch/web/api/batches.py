"""`/v1/batches`: create, list, get, cancel, pause and resume batches, and stream their results so far."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy import Connection
from starlette.responses import Response, StreamingResponse

from bros_batch.db import ended_items, jobs
from bros_batch.db.in_flight import in_flight
from bros_batch.db.states import WITHOUT_RESULT, ItemStatus, JobStatus
from bros_batch.db.table_rows import IdempotencyKey, Job
from bros_batch.db.waiting import waiting_reasons
from bros_batch.openai_api.batch_output import error_line, output_line
from bros_batch.openai_api.validation import validate
from bros_batch.web.api.batch_object import batch_object
from bros_batch.web.api.idempotency_key import digest, earlier_job, idempotency_key, replayed
from bros_batch.web.api.new_job import BatchRequest, start_job
from bros_batch.web.api.pagination import list_page
from bros_batch.web.api.rows import check_rows
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.change_job import change_job
from bros_batch.web.errors import JSONResponse, not_found
from bros_batch.web.job_forecasts import forecasts
from bros_batch.web.owners import visible_owner

router = APIRouter(prefix="/v1/batches")


@router.post("")
async def create_batch(request: Request) -> Response:
    """Create a job. With an `Idempotency-Key`, only the first request creates one, and later ones return it."""
    state = app_state(request)
    now_s = time.time()
    key = idempotency_key(request)
    fingerprints: list[str] = []

    def parse(raw: bytes) -> BatchRequest:
        fingerprints.append(digest(raw))
        return validate(BatchRequest, raw)

    body = await state.parsed(request, parse)
    claimed = None if key is None else IdempotencyKey(key, fingerprints[0], jobs.new_job_id(), now_s)
    if claimed is not None:
        # Before the checks: what was fine then, such as a deadline, need not be so now.
        earlier = await state.read(lambda connection: earlier_job(connection, claimed))
        if earlier is not None:
            return replayed(earlier)
    job, is_earlier = await start_job(request, body, now_s, claimed)
    return replayed(job) if is_earlier else JSONResponse(batch_object(job))


@router.get("")
async def list_batches(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    status: JobStatus | None = None,
    search: str | None = None,
) -> Response:
    """List jobs, newest first."""
    seen = visible_owner(request)

    def query(connection: Connection) -> list[Job]:
        if after is not None and jobs.get_job(connection, after, seen) is None:
            raise not_found("batch", after, "after")
        return jobs.list_jobs(
            connection, after=after, limit=limit + 1, status=status, search=search, owner=seen
        )

    found = await app_state(request).read(query)
    return JSONResponse(list_page(await _batch_objects(app_state(request), found), limit))


@router.get("/{batch_id}")
async def get_batch(request: Request, batch_id: str) -> Response:
    """Return a job with its progress."""
    job = await _find(request, batch_id)
    return JSONResponse((await _batch_objects(app_state(request), [job]))[0])


@router.post("/{batch_id}/cancel")
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """End a job; what is done is kept."""
    return JSONResponse(batch_object(await change_job(request, batch_id, "cancel")))


@router.post("/{batch_id}/pause")
async def pause_batch(request: Request, batch_id: str) -> Response:
    """Let a job rest until it is resumed."""
    return JSONResponse(batch_object(await change_job(request, batch_id, "pause")))


@router.post("/{batch_id}/resume")
async def resume_batch(request: Request, batch_id: str) -> Response:
    """Continue a paused job."""
    return JSONResponse(batch_object(await change_job(request, batch_id, "resume")))


@router.get("/{batch_id}/results")
async def stream_results(
    request: Request,
    batch_id: str,
    status: Literal["succeeded", "failed"] = "succeeded",
    after_line: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> Response:
    """Stream the lines of the output file, or of the error file, that exist so far, in input order.

    This works while the batch runs, and also after it was cancelled or has failed.
    """
    state = app_state(request)
    check_rows(await _find(request, batch_id))
    return StreamingResponse(_lines(state, batch_id, status, after_line), media_type="application/jsonl")


async def _lines(state: AppState, job_id: str, status: str, after_line: int) -> AsyncIterator[str]:
    """Yield lines page by page, so that no transaction stays open while a slow client reads."""
    statuses = (ItemStatus.SUCCEEDED,) if status == "succeeded" else tuple(WITHOUT_RESULT)

    def line_of(item: ended_items.EndedItem) -> str:
        if status == "succeeded":
            return output_line(item.id, item.epoch, item.custom_id, item.result)
        failure = (item.error_code, item.error_message)
        return error_line(item.id, item.custom_id, *failure, epoch=item.epoch, body=item.result)

    while True:

        def query(connection: Connection, after_line: int = after_line) -> list[ended_items.EndedItem]:
            return ended_items.ended_page(connection, job_id, after_line, ended_items.PAGE_ROWS, *statuses)

        page = await state.read(query)
        if not page:
            return
        yield "".join(map(line_of, page))
        after_line = page[-1].line_no


async def _find(request: Request, job_id: str) -> Job:
    seen = visible_owner(request)
    job = await app_state(request).read(lambda connection: jobs.get_job(connection, job_id, seen))
    if job is None:
        raise not_found("batch", job_id, "batch_id")
    return job


async def _batch_objects(state: AppState, found: Sequence[Job]) -> list[dict[str, Any]]:
    """Return jobs as batch objects, with what running ones wait for and when they will be done."""
    if not any(job.status == JobStatus.IN_PROGRESS for job in found):
        return [batch_object(job) for job in found]
    now_s = time.time()

    def query(connection: Connection) -> list[dict[str, Any]]:
        reasons = waiting_reasons(connection, found, now_s)
        expected = forecasts(connection, state.rates.engine, found, now_s)
        held = in_flight(connection, found, now_s)
        return [
            batch_object(job, reasons.get(job.id), expected.get(job.id), held.get(job.id)) for job in found
        ]

    return await state.read(query)
