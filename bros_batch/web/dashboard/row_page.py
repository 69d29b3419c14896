"""One row of a job: its document, the prompt, the answer, what went wrong, and a button that runs it again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from bros_batch.db import jobs
from bros_batch.db.allowed_changes import RERUNNABLE_JOBS
from bros_batch.db.rows import ItemRow, RowQuery, get_row, rows_page
from bros_batch.db.states import ENDED_ITEM, ItemStatus
from bros_batch.db.table_rows import Job
from bros_batch.documents.requested_json import requested_schema
from bros_batch.web.api.row_object import WholeRow, whole_row
from bros_batch.web.app_state import app_state
from bros_batch.web.change_job import rerun_rows
from bros_batch.web.dashboard.rendering import Page
from bros_batch.web.errors import not_found
from bros_batch.web.formats import number
from bros_batch.web.owners import visible_owner

MAX_TEXT_CHARS = 100_000
MAX_ROW = 2**31
ROW_STATUSES = frozenset(status.value for status in ItemStatus)


@dataclass(frozen=True, slots=True)
class RowDetails:
    """A row of a job, and its neighbors among the rows with the status that the URL names."""

    job: Job
    row: ItemRow
    previous: int | None
    next: int | None


async def read_row(request: Request) -> Page:
    """The row that the path names."""
    job_id, row = request.path_params["job_id"], _row_number(request)
    status = request.query_params.get("status", "")
    status = status if status in ROW_STATUSES else ""

    def read(connection: Connection) -> RowDetails | None:
        return read_details(connection, job_id, row, status, visible_owner(request))

    details = await app_state(request).read(read)
    if details is None:
        what = f"{job_id}, row {request.path_params['row']}"
        return Page("404.html", {"heading": "No such row", "what": what}, status=404)
    return await run_in_threadpool(row_page, details, status, time.time())


def read_details(
    connection: Connection, job_id: str, row: int | None, status: str, owner: str | None = None
) -> RowDetails | None:
    """A row's details, or None if there is no such row, or it is another owner's."""
    job = jobs.get_job(connection, job_id, owner)
    found = get_row(connection, job_id, row) if job is not None and row is not None else None
    if job is None or found is None:
        return None
    among = ItemStatus(status) if status else None
    neighbors = (
        rows_page(connection, job, RowQuery(row, 1, is_before, among)).rows for is_before in (True, False)
    )
    previous, following = (page[0].line_no if page else None for page in neighbors)
    return RowDetails(job, found, previous, following)


def row_page(details: RowDetails, status: str, now_s: float) -> Page:
    """The page of a row."""
    job, row = details.job, details.row
    whole = whole_row(row, job)
    response = _decoded(whole.response)
    base = f"/jobs/{quote(job.id)}/rows"
    among = f"?status={status}" if status else ""
    values = {
        "now_s": now_s,
        "job": job,
        "row": row,
        "document": _fields(_decoded(whole.document), "document"),
        "prompt": _cut(whole.prompt) if whole.prompt is not None else None,
        "request": None if row.body is None else _cut(_pretty(whole.request)),
        "answer": _fields(_object_in(_decoded(whole.answer)), "answer"),
        "raw_answer": None
        if whole.raw_answer is msgspec.UNSET
        else _cut(_pretty(_decoded(whole.raw_answer))),
        "check": _check(whole, response),
        "finish": _finish_reason(response),
        "response": None if response is None else _cut(_pretty(response)),
        "attempts": whole.attempts,
        "took_s": row.finished_at - row.queued_at if row.finished_at and row.queued_at else None,
        "may_rerun": row.status in ENDED_ITEM and row.body is not None and job.status in RERUNNABLE_JOBS,
        "previous": f"{base}/{details.previous}{among}" if details.previous is not None else None,
        "next": f"{base}/{details.next}{among}" if details.next is not None else None,
        "status": status,
        "api_url": f"/v1/batches/{quote(job.id)}/rows/{row.line_no}",
    }
    return Page("row.html", values, live=("heading", "actions", "row"))


async def rerun(request: Request) -> Response:
    """Run a row again. The response is empty for a script, and a redirect for a plain form."""
    row = _row_number(request)
    if row is None:
        raise not_found("row", request.path_params["row"], "row")
    job_id = request.path_params["job_id"]
    await rerun_rows(request, job_id, [row])
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"/jobs/{quote(job_id)}/rows/{row}", 303)
    return Response(status_code=204)


def _row_number(request: Request) -> int | None:
    text = request.path_params["row"]
    return (
        int(text)
        if text.isascii() and text.isdecimal() and len(text) < 11 and 0 < int(text) < MAX_ROW
        else None
    )


def _decoded(value: Any) -> Any:
    """A value without pieces of JSON that are still text."""
    if value is None:
        return None
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (msgspec.MsgspecError, RecursionError):
        return bytes(value).decode(errors="replace") if isinstance(value, msgspec.Raw) else str(value)


def _object_in(answer: Any) -> Any:
    """The object that a text is in JSON, although no schema asked for one; anything else as it is."""
    if isinstance(answer, str) and answer.lstrip().startswith("{"):
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):
            return msgspec.json.decode(answer)
    return answer


def _fields(value: Any, name: str) -> list[tuple[str, str]]:
    """The names and texts of an object's fields, or the text of anything else under one name."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [(str(key), "" if each is None else _cut(_pretty(each))) for key, each in value.items()]
    return [(name, _cut(_pretty(value)))]


def _pretty(value: Any) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT_CHARS:
        return text
    return f"{text[:MAX_TEXT_CHARS]}\n… ({number(len(text) - MAX_TEXT_CHARS)} more characters)"


def _choice(response: Any) -> Mapping[str, Any]:
    try:
        choice = response["choices"][0]
    except (TypeError, KeyError, IndexError):
        return {}
    return choice if isinstance(choice, Mapping) else {}


def _finish_reason(response: Any) -> str | None:
    reason = _choice(response).get("finish_reason")
    words = {"stop": "by itself", "length": "at the token limit", "tool_calls": "with a call of a tool"}
    return words.get(reason, str(reason)) if reason else None


def _check(whole: WholeRow, response: Any) -> tuple[bool, Sequence[str]] | None:
    """Whether the answer is what its schema asks for, and sentences about it; None without a schema or an output.

    It is False for a schema that cannot be checked, too.
    """
    # Not at the top: it takes a tenth of a second, and few pages need it.
    from bros_batch.web.dashboard.schema_check import breaks_of_texts

    request = _decoded(whole.request)
    schema = requested_schema(request) if isinstance(request, Mapping) else None
    if schema is None or not isinstance(request, Mapping):
        return None
    if whole.raw_answer is not msgspec.UNSET:
        is_cut = _choice(response).get("finish_reason") == "length" or _is_incomplete(response)
        return False, ["The answer was cut at the token limit." if is_cut else "The answer is not JSON."]
    if whole.answer is None:
        return None
    answer = _decoded(whole.answer)
    answers = answer if isinstance(answer, list) and request.get("n", 1) != 1 else [answer]
    sentences: list[str] = []
    for each in answers:
        breaks = breaks_of_texts(msgspec.json.encode(schema), msgspec.json.encode(each))
        if breaks is None:
            return False, [
                "It takes too long to check the answer against its schema, or the schema is not valid."
            ]
        sentences += breaks
    return (not sentences), sentences or ["The answer is valid for its schema."]


def _is_incomplete(response: Any) -> bool:
    return isinstance(response, Mapping) and response.get("status") == "incomplete"
