"""`POST /v1/batches/check`: whether a job could be created, before its file is uploaded."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from bros_batch.openai_api.validation import validate
from bros_batch.web.api.new_job import BatchRequest, PlainText, job_terms
from bros_batch.web.app_state import app_state
from bros_batch.web.bulk_limits import check_bulk_limits
from bros_batch.web.errors import JSONResponse

router = APIRouter(prefix="/v1/batches")


class CheckRequest(BatchRequest):
    """Body of `POST /v1/batches/check`: that of `POST /v1/batches`, whose file need not exist yet."""

    input_file_id: PlainText = Field("", max_length=64)


@router.post("/check")
async def check_batch(request: Request) -> Response:
    """Return the model of a job that could be created, or the error for one that could not, whatever its file."""
    state = app_state(request)
    body = await state.parsed(request, lambda raw: validate(CheckRequest, raw))
    terms = await job_terms(request, body, time.time())
    await state.read(lambda connection: check_bulk_limits(connection, request, rows=0))
    return JSONResponse({"object": "batch.check", "model": terms.model})
