"""`/v1/batches/{id}/rows`: pages of a job's rows, one row, and all rows as a stream; and `rerun`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import Field, StringConstraints
from sqlalchemy import Connection
from starlette.responses import Response, StreamingResponse

from bros_batch.db.jobs import get_job
from bros_batch.db.rows import ItemRow, RowQuery, get_row, rows_page
from bros_batch.db.states import ItemStatus
from bros_batch.db.table_rows import Job
from bros_batch.openai_api.validation import LenientPart, validate
from bros_batch.request_error import RequestError
from bros_batch.web.api.batch_object import batch_object
from bros_batch.web.api.row_object import RowObject, contains, contents_of, row_object, whole_row
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.change_job import rerun_rows
from bros_batch.web.errors import ApiError, JSONResponse, not_found
from bros_batch.web.owners import visible_owner

router = APIRouter(prefix="/v1/batches")

NDJSON = "application/x-ndjson"
MAX_ROWS = 1_000
STREAMED_ROWS = 1_000
MAX_RERUN_ROWS = 100_000
ENDED_ROWS = RowQuery(ended=True)

Search = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class RerunRequest(LenientPart):
    """Body of `POST /v1/batches/{id}/rerun`: the numbers of rows, or all rows without a result."""

    rows: list[Annotated[int, Field(ge=1, lt=2**31)]] | None = Field(
        None, min_length=1, max_length=MAX_RERUN_ROWS
    )
    only: Literal["failed"] | None = None


@router.get("/{batch_id}/rows")
async def list_rows(
    request: Request,
    batch_id: str,
    after: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 100,
    order: Literal["asc", "desc"] = "asc",
    status: ItemStatus | None = None,
    search: Search | None = None,
    only: Literal["failed", "ended"] | None = None,
) -> Response:
    """List the rows of a job by number, or stream all of them as JSON lines (`Accept: application/x-ndjson`)."""
    query = RowQuery(
        after, limit, order == "desc", status, search, ended=only == "ended", only_failed=only == "failed"
    )
    state, seen = app_state(request), visible_owner(request)
    if NDJSON in request.headers.get("accept", ""):
        await state.read(lambda connection: get_rows_job(connection, batch_id, seen))
        return StreamingResponse(row_lines(state, batch_id, query, seen), media_type=NDJSON)

    def read(connection: Connection) -> bytes:
        found, next_after = _page(connection, batch_id, query, seen)
        page = {"object": "list", "data": found, "has_more": next_after is not None, "next_after": next_after}
        return msgspec.json.encode(page)

    return Response(await state.read(read), media_type="application/json")


@router.get("/{batch_id}/rows/{row}")
async def get_one_row(request: Request, batch_id: str, row: int) -> Response:
    """Return a row with its rendered prompt, its request and the whole response."""

    def read(connection: Connection) -> tuple[Job, ItemRow | None]:
        job = get_rows_job(connection, batch_id, visible_owner(request))
        return job, get_row(connection, job.id, row) if 0 < row < 2**31 else None

    job, found = await app_state(request).read(read)
    if found is None:
        raise not_found("row", str(row), "row")
    return JSONResponse(whole_row(found, job))


@router.post("/{batch_id}/rerun")
async def rerun_batch(request: Request, batch_id: str) -> Response:
    """Compute rows of a job again, by number or all that have no result; their results are replaced."""
    body = await app_state(request).parsed(request, lambda raw: validate(RerunRequest, raw))
    if (body.rows is None) == (body.only is None):
        raise RequestError("Name the rows with either 'rows' or 'only'.", "rows")
    return JSONResponse(batch_object(await rerun_rows(request, batch_id, body.rows)))


def get_rows_job(connection: Connection, job_id: str, owner: str | None) -> Job:
    """The job whose rows are asked for. Raises ApiError if there is none, or if its rows are no longer kept."""
    job = get_job(connection, job_id, owner)
    if job is None:
        raise not_found("batch", job_id, "batch_id")
    check_rows(job)
    return job


def check_rows(job: Job) -> None:
    """Raise ApiError 410 if the rows of a job were removed."""
    if job.rows_removed_at is not None:
        message = (
            f"The rows of the batch '{job.id}' were removed after the time for which they are kept "
            "(BROS_ROW_RETENTION_S, BROS_MAX_STORED_BYTES)."
        )
        raise ApiError(410, message, param="batch_id", code="rows_removed")


def _page(
    connection: Connection, job_id: str, query: RowQuery, owner: str | None
) -> tuple[list[RowObject], int | None]:
    """The rows of a page, and the row after which the next page begins, if there is one."""
    job = get_rows_job(connection, job_id, owner)
    contents = contents_of(job)
    search = query.search
    if search is not None:
        query = replace(query, matches=lambda row: contains(row, contents, search))
    page = rows_page(connection, job, query)
    return [row_object(row, contents) for row in page.rows], page.next_after


async def row_lines(state: AppState, job_id: str, query: RowQuery, owner: str | None) -> AsyncIterator[bytes]:
    """Yield rows as JSON lines, page by page, so that no transaction stays open while a slow client reads."""
    encoder = msgspec.json.Encoder()
    next_after = query.after
    while True:
        query = replace(query, after=next_after, limit=STREAMED_ROWS)

        def read(connection: Connection, query: RowQuery = query) -> tuple[bytes, int | None]:
            rows, next_after = _page(connection, job_id, query, owner)
            return encoder.encode_lines(rows), next_after

        lines, next_after = await state.read(read)
        if lines:
            yield lines
        if next_after is None:
            return
