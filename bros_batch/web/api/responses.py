"""`/v1/responses`: get, stream, cancel and delete responses, and list their input."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bros_batch.db import responses
from bros_batch.db.responses import FoundResponse
from bros_batch.openai_api.endpoints import RESPONSES
from bros_batch.request_error import RequestError
from bros_batch.web.api.background_stream import stored_events
from bros_batch.web.api.event_stream import EventStream
from bros_batch.web.api.new_response import conversation_with, create_response
from bros_batch.web.api.pagination import list_page
from bros_batch.web.app_state import app_state
from bros_batch.web.audit import log_change
from bros_batch.web.change_job import change_job
from bros_batch.web.errors import ApiError, JSONResponse, not_found
from bros_batch.web.owners import visible_owner
from bros_batch.web.response_state import (
    current_response,
    is_ended,
)

router = APIRouter(prefix=RESPONSES)

Json = dict[str, Any]

NUMBER = re.compile(r"-1|\d{1,9}")


async def get_response(http: Request) -> Response | ASGIApp:
    """Return a response as it is now, or stream its events."""
    response_id = http.path_params["response_id"]
    found = await _find(http, response_id)
    if not is_ended(found):
        app_state(http).dispatcher.record_soon()
    if http.query_params.get("stream", "false").lower() not in ("true", "1") or http.method == "HEAD":
        return await _shown(found)
    after = http.query_params.get("starting_after", "-1")
    if not NUMBER.fullmatch(after):
        raise RequestError("'starting_after' must be the number of an event.", "starting_after")
    return EventStream(http, stored_events(http, response_id, int(after)), end=b"")


@router.get("/{response_id}/input_items")
async def list_input_items(
    request: Request,
    response_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """List the items that a response was generated from: its conversation, and its own input."""
    found = await _find(request, response_id, with_input=True)
    earlier: Sequence[Json] = ()
    if found.row.previous_id is not None:
        async with app_state(request).conversations:
            earlier = (await conversation_with(request, found.row.previous_id)).items
    own = await asyncio.to_thread(msgspec.json.decode, found.row.input)
    by_id = {item["id"]: item for item in reversed([*earlier, *own])}  # an item may have been sent again
    listed = list(by_id.values())
    if order == "asc":
        listed.reverse()
    if after is not None:
        if after not in by_id:
            raise not_found("input item", after, "after")
        listed = listed[[item["id"] for item in listed].index(after) + 1 :]
    return JSONResponse(list_page(listed[: limit + 1], limit))


@router.post("/{response_id}/cancel")
async def cancel_response(request: Request, response_id: str) -> Response:
    """Cancel a response in the background. One that has ended stays as it is."""
    found = await _find(request, response_id)
    if found.row.job_id is None:
        message = (
            f"The response '{response_id}' does not run in the background; close its connection to cancel it."
        )
        raise ApiError(400, message, param="response_id", code="not_in_background")
    if not is_ended(found):
        await _cancel_job(request, found.row.job_id)
        log_change(request.scope, "response.cancel", response=response_id)
        found = await _find(request, response_id)
    return await _shown(found)


@router.delete("/{response_id}")
async def delete_response(request: Request, response_id: str) -> Response:
    """Delete a response with its texts; one that runs is cancelled. Those that continue it cannot be continued then."""
    found = await _find(request, response_id)
    if found.row.job_id is not None and not is_ended(found):
        await _cancel_job(request, found.row.job_id)
    await app_state(request).write(lambda connection: responses.delete_responses(connection, [response_id]))
    log_change(request.scope, "response.deleted", response=response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


async def _cancel_job(request: Request, job_id: str) -> None:
    try:
        await change_job(request, job_id, "cancel")
    except ApiError as error:
        if error.code != "illegal_transition":  # it has ended in the meantime
            raise


async def _shown(found: FoundResponse) -> Response:
    """Return the response as it is now. In a thread, because log-probabilities can make it long."""
    return _encoded(await asyncio.to_thread(current_response, found))


def _encoded(body: bytes) -> Response:
    return Response(body, media_type="application/json")


async def _find(request: Request, response_id: str, *, with_input: bool = False) -> FoundResponse:
    found = await app_state(request).read(
        lambda connection: responses.find_response(
            connection, response_id, with_input=with_input, owner=visible_owner(request)
        )
    )
    if found is None:
        raise not_found("response", response_id, "response_id")
    return found


routes = [
    Route(RESPONSES, create_response, methods=["POST"]),
    Route(f"{RESPONSES}/{{response_id}}", get_response, methods=["GET"]),
]
