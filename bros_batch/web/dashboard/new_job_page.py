"""The page for a new job: what its prompt becomes for the first rows, a try of single rows, and the start of all."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bros_batch.db import files
from bros_batch.documents.first_documents import MAX_LINES, FirstDocument, first_documents, sampled_lines
from bros_batch.documents.form import DOCUMENT
from bros_batch.documents.item_requests import job_requests
from bros_batch.documents.row_contents import RowContents
from bros_batch.documents.row_request import row_request
from bros_batch.forecast_text import effect_on_chats, reused_rows
from bros_batch.openai_api.completion_response import ResponseHead
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS
from bros_batch.openai_api.registry import endpoint_at
from bros_batch.openai_api.validation import validate
from bros_batch.request_error import RequestError
from bros_batch.web.api.job_forecast import MAX_ROWS, ForecastRequest, forecast_object
from bros_batch.web.api.new_job import start_job
from bros_batch.web.app_state import app_state
from bros_batch.web.client_disconnect import while_connected
from bros_batch.web.dashboard.job_draft import (
    KINDS,
    JobDraft,
    batch_request,
    check_prompt,
    decoded,
    defaults_of,
)
from bros_batch.web.dashboard.rendering import Page
from bros_batch.web.errors import JSONResponse, not_found
from bros_batch.web.generation_plan import plan_generation
from bros_batch.web.owners import owner_of, visible_owner

PREVIEWED_ROWS = 3
MAX_PROMPT_CHARS = 4000
SAMPLED_LINES = 200
Json = dict[str, Any]


class TriedRow(msgspec.Struct):
    """Body of `POST /new/try`: a job, and one of its first rows."""

    job: JobDraft
    row: int


class WholeJob(msgspec.Struct):
    """Body of `POST /new/forecast`: a job, and the number of its rows."""

    job: JobDraft
    rows: Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS)]


async def read_new_job(request: Request) -> Page:
    """The page, which is the same for everyone: a job exists only in the browser until it is started."""
    limit_bytes = app_state(request).settings.max_upload_bytes
    return Page("new.html", {"kinds": KINDS, "limit_bytes": limit_bytes})


async def preview(request: Request) -> Response:
    """The prompts of the first rows, or what is wrong with the job and in which field."""
    state = app_state(request)
    draft = await state.parsed(request, partial(decoded, JobDraft))
    documents = await _first_documents(request, draft, PREVIEWED_ROWS)
    problem: RequestError | None = None
    try:
        check_prompt(draft, documents)
        defaults = defaults_of(draft)
    except RequestError as error:
        problem, defaults = error, {"prompt": draft.prompt}
    rows = await run_in_threadpool(lambda: [_previewed(each, defaults) for each in documents])
    shown = None if problem is None else {"message": problem.message, "param": problem.param}
    return JSONResponse({"rows": rows, "problem": shown})


def _previewed(document: FirstDocument, defaults: Json) -> Json:
    try:
        request = row_request(CHAT_COMPLETIONS, "", DOCUMENT, defaults, document.line, document.row)
    except RequestError as error:
        return {"row": document.row, "problem": error.message}
    prompt = request.prompt or ""
    cut = prompt if len(prompt) <= MAX_PROMPT_CHARS else f"{prompt[:MAX_PROMPT_CHARS]}…"
    return {"row": document.row, "prompt": cut, "chars": len(prompt)}


async def try_row(request: Request) -> Response:
    """The answer for one row, computed at once like that of a chat."""
    state = app_state(request)
    tried = await state.parsed(request, partial(decoded, TriedRow))
    draft = tried.job
    documents = await _first_documents(request, draft, MAX_LINES)
    check_prompt(draft, documents)
    document = next((each for each in documents if each.row == tried.row), None)
    if document is None:
        raise not_found("row", str(tried.row), "row")
    defaults = defaults_of(draft)
    model = state.settings.model_name
    job_requests(CHAT_COMPLETIONS, model, DOCUMENT, defaults)  # checks them
    body = row_request(CHAT_COMPLETIONS, model, DOCUMENT, defaults, document.line, document.row).body
    endpoint = endpoint_at(CHAT_COMPLETIONS)
    parsed = await run_in_threadpool(lambda: endpoint.parse(msgspec.json.encode(body).decode()))
    start_s = time.monotonic()
    generation = await plan_generation(request, endpoint, parsed)
    generation.on_end = await state.rate_limits.admit(request, generation.usage.prompt_tokens)
    head = ResponseHead(CHAT_COMPLETIONS, request.state.request_id, model, int(time.time()))
    result = await while_connected(request, generation.encoded_response(head))
    usage = generation.usage
    response = msgspec.json.decode(result)
    answer, raw_answer = RowContents(CHAT_COMPLETIONS, DOCUMENT, defaults).answer(None, result.decode())
    return JSONResponse(
        {
            "row": document.row,
            "answer": answer if raw_answer is None else raw_answer,
            "is_cut": response["choices"][0]["finish_reason"] == "length",
            "prompt_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "seconds": time.monotonic() - start_s,
        }
    )


async def forecast(request: Request) -> Response:
    """The tokens of all rows, when the job would be done if it were started now, what of it has been computed, and what
    chats would notice."""
    state = app_state(request)
    asked = await state.parsed(request, partial(decoded, WholeJob))
    path = await _path(request, asked.job)
    lines = await run_in_threadpool(sampled_lines, path, SAMPLED_LINES)
    batch = batch_request(asked.job)
    body = {
        "endpoint": batch.endpoint,
        "rows": asked.rows,
        # Which rows they are is not known, and not shown.
        "lines": [
            {"row": min(number, asked.rows), "line": line} for number, line in enumerate(lines, start=1)
        ],
        "defaults": batch.defaults,
        "priority": batch.priority,
        "id_field": asked.job.id_field or None,
    }
    found = await forecast_object(
        state, validate(ForecastRequest, msgspec.json.encode(body)), owner_of(request)
    )
    shown = {name: found[name] for name in ("forecast", "input_tokens", "output_tokens")}
    reused, chats = reused_rows(found["reused_rows"]), effect_on_chats(found["chats"])
    return JSONResponse({**shown, "reused": reused, "chats": chats})


async def start(request: Request) -> Response:
    """Create the job, as `POST /v1/batches` does. The page cannot use that: a session may only read the API."""
    state = app_state(request)
    draft = await state.parsed(request, partial(decoded, JobDraft))
    check_prompt(draft, await _first_documents(request, draft, PREVIEWED_ROWS))
    job, _ = await start_job(request, batch_request(draft), time.time())
    return JSONResponse({"id": job.id})


async def _first_documents(request: Request, draft: JobDraft, count: int) -> list[FirstDocument]:
    return await run_in_threadpool(first_documents, await _path(request, draft), count)


async def _path(request: Request, draft: JobDraft) -> Path:
    seen = visible_owner(request)
    file = await app_state(request).read(lambda connection: files.get_file(connection, draft.file, seen))
    if file is None or not await run_in_threadpool(Path(file.path).is_file):
        raise RequestError("The file of this job is gone. Choose it again.", "file")
    return Path(file.path)
