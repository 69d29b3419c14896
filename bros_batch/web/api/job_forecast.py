"""`POST /v1/batches/forecast`: what a job would be, and when it would be done, without creating anything."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from bros_batch.db.forecast_inputs import stored_keys, weights_of
from bros_batch.documents.content_key import key_scope
from bros_batch.documents.item_requests import prompt_fields
from bros_batch.documents.lines import LineReader
from bros_batch.documents.sample import Sample, SampleReader
from bros_batch.openai_api.endpoint import ServedModel, embedding_form
from bros_batch.openai_api.endpoints import EndpointPath
from bros_batch.openai_api.sampling_defaults import sampling_defaults
from bros_batch.openai_api.validation import LenientPart, RequestPart, validate
from bros_batch.web.api.new_job import MAX_COLUMN_CHARS, checked_defaults
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.engine_load import NewJob
from bros_batch.web.errors import JSONResponse
from bros_batch.web.job_forecasts import forecast_of_new
from bros_batch.web.owners import owner_of
from engine.wire.limits import ModelLimits

router = APIRouter(prefix="/v1/batches")

MAX_LINES = 4000
MAX_ROWS = 2**31 - 1
# The lines that are not read by then are left out, and the answer says how many were.
SAMPLE_S = 1.0
SHOWN_REJECTED = 20


class SampledLine(RequestPart):
    """A line of the input file with its number."""

    row: int = Field(ge=1, le=MAX_ROWS)
    line: str


class ForecastRequest(LenientPart):
    """Body of `POST /v1/batches/forecast`: a job as for `POST /v1/batches`, with some of its lines in random order."""

    endpoint: EndpointPath
    lines: list[SampledLine] = Field(min_length=1, max_length=MAX_LINES)
    rows: int = Field(ge=1, le=MAX_ROWS)
    defaults: dict[str, Any] | None = None
    priority: int = Field(0, ge=-1_000_000, le=1_000_000)
    fresh: bool = False
    id_field: str | None = Field(None, min_length=1, max_length=MAX_COLUMN_CHARS)


@router.post("/forecast")
async def forecast_batch(request: Request) -> Response:
    """Return the tokens of a job, its first request, the rows that would be rejected, and when it would be done.

    Lines are read for up to a second. `sampled` says how many; the sums over all rows are extrapolated from those.
    """
    state = app_state(request)
    body = await state.parsed(request, lambda raw: validate(ForecastRequest, raw))
    return JSONResponse(await forecast_object(state, body, owner_of(request)))


async def forecast_object(state: AppState, body: ForecastRequest, owner: str) -> dict[str, Any]:
    """Return what the job would be, as the API shows it."""
    defaults = body.defaults or {}
    model = checked_defaults(body.endpoint, defaults, state.settings.model_names)
    served = await _served_model(state)
    reader = LineReader(
        body.endpoint,
        state.settings.model_names if defaults.get("model") is None else None,
        None,
        prompt_fields(defaults),
        id_field=body.id_field,
        strict=state.settings.strict,
    )
    weights = "" if body.fresh else await state.read(lambda connection: weights_of(connection, model))
    scope = key_scope(model, weights, owner) if weights else None
    lines = [(each.row, each.line) for each in body.lines]
    async with state.long_prompts:
        sample = await asyncio.to_thread(
            _read, SampleReader(reader, body.endpoint, model, defaults, served, scope), lines
        )
    rows = round(body.rows * sample.accepted / sample.looked_at)
    reused = round(body.rows * await _reused(state, sample) / sample.looked_at)
    new = NewJob(
        model,
        body.endpoint,
        defaults,
        rows - reused,
        sample.computed_tokens,
        sample.output_limit / max(sample.accepted, 1),
        body.priority,
        owner=owner,
    )
    expected = await state.read(
        lambda connection: forecast_of_new(connection, state.rates.engine, new, time.time())
    )
    seconds, output_tokens = expected if sample.accepted else (None, 0.0)
    return {
        "object": "batch.forecast",
        "model": model,
        "line_form": sample.form,
        "rows": body.rows,
        "sampled": sample.looked_at,
        "rejected": {
            "rows": body.rows - rows,
            "data": [{"row": row, "message": text} for row, text in sample.rejected[:SHOWN_REJECTED]],
        },
        "input_tokens": round(sample.prompt_tokens / max(sample.accepted, 1) * rows),
        "output_tokens": round(output_tokens * rows),
        "reused_rows": reused,
        "chats": asdict(state.rates.engine.chats),
        "first": _first(sample),
        "forecast": None if seconds is None else seconds.as_json(),
    }


async def _reused(state: AppState, sample: Sample) -> int:
    """How many of the lines get the answers of earlier rows, or of lines before them."""
    keys = list({key for each in sample.keys for key in each})
    known = await state.read(lambda connection: stored_keys(connection, keys)) if keys else set()
    count = 0
    for each in sample.keys:
        count += known.issuperset(each)
        known.update(each)
    return count


def _read(reader: SampleReader, lines: list[tuple[int, str]]) -> Sample:
    until_s = time.monotonic() + SAMPLE_S
    return reader.read(lines, lambda: time.monotonic() >= until_s)


def _first(sample: Sample) -> dict[str, Any] | None:
    if sample.first is None:
        return None
    return {"row": sample.first_row, "prompt": sample.first.prompt, "request": sample.first.body}


async def _served_model(state: AppState) -> ServedModel:
    """Return the served model, with the limits of its engine or, while none runs, those of its files."""
    tokenizer = await state.tokenizer()
    client = state.engine.connected
    limits = ModelLimits(tokenizer.max_model_len, tokenizer.vocab_size) if client is None else client.welcome
    defaults = sampling_defaults(state.settings, tokenizer.recommended_sampling)
    return ServedModel(tokenizer, limits, defaults, embedding_form(state.settings, tokenizer))
