"""`POST /v1/responses`: generate a response at once, or create the job of one in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from fastapi import Request
from sqlalchemy import Connection
from starlette.responses import Response
from starlette.types import ASGIApp

from bros_batch.db import response_jobs, responses
from bros_batch.db.files import expiry_of
from bros_batch.db.pending_items import AS_CHAT_PRIORITY
from bros_batch.db.responses import FoundResponse
from bros_batch.db.table_rows import StoredResponse
from bros_batch.openai_api import completion_response
from bros_batch.openai_api.endpoints import RESPONSES
from bros_batch.openai_api.registry import endpoint_at
from bros_batch.openai_api.responses.background_response import item_body
from bros_batch.openai_api.responses.input_items import normalized_items
from bros_batch.openai_api.responses.response_object import ResponseHead, response_object
from bros_batch.openai_api.responses.response_request import (
    ResponseBody,
    ResponseRequest,
    parse_response_body,
    response_request,
)
from bros_batch.web.api.background_stream import stored_events
from bros_batch.web.api.event_stream import EventStream
from bros_batch.web.api.response_stream import GeneratedResponse
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.audit import log_change
from bros_batch.web.bulk_limits import check_bulk_limits
from bros_batch.web.client_disconnect import while_connected
from bros_batch.web.errors import ApiError
from bros_batch.web.generation_plan import plan_generation
from bros_batch.web.ignored_fields import note_ignored
from bros_batch.web.notify_target import notify_target
from bros_batch.web.owners import owner_of, visible_owner
from bros_batch.web.response_state import (
    Conversation,
    check_continuable,
    conversation_of,
)

logger = logging.getLogger(__name__)

Json = dict[str, Any]

# A request, and the names of its fields without effect.
_Checked = tuple[ResponseRequest, Sequence[str]]


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A body with its input items. `checked` is None if it continues another response, which has to be read first."""

    body: ResponseBody
    items: Sequence[Json]
    checked: _Checked | None


def _parse(state: AppState, response_id: str, raw: bytes) -> _Parsed:
    body = parse_response_body(raw)
    items = normalized_items(body.input, response_id.removeprefix("resp_"))
    continues = body.previous_response_id is not None
    return _Parsed(body, items, None if continues else _checked(state, body, items))


def _checked(state: AppState, body: ResponseBody, items: Sequence[Json]) -> _Checked:
    request = response_request(body, items)
    return request, state.ignored_in(request)


async def create_response(http: Request) -> Response | ASGIApp:
    """Generate a response, or start one in the background."""
    state = app_state(http)
    new_id = responses.new_response_id()
    parsed = await state.parsed(http, partial(_parse, state, new_id))
    body = parsed.body
    conversation = Conversation()
    checked = parsed.checked
    if checked is None:
        async with state.conversations:
            conversation = await conversation_with(http, body.previous_response_id or "")
            items = [*conversation.items, *parsed.items]
            checked = await asyncio.to_thread(_checked, state, body, items)
    request, ignored = checked
    note_ignored(http, ignored)
    new = _NewResponse(http, new_id, request, parsed.items, conversation, time.time())
    if body.background:
        return await new.start()
    return await new.generate()


async def conversation_with(http: Request, previous_id: str) -> Conversation:
    """Read the conversation that ends with a response, to be continued."""
    seen = visible_owner(http)

    def query(connection: Connection) -> list[FoundResponse]:
        previous = responses.find_response(connection, previous_id, owner=seen)
        check_continuable(previous)
        return [] if previous is None else responses.conversation(connection, previous_id)

    found = await app_state(http).read(query)
    return await asyncio.to_thread(conversation_of, previous_id, found)


@dataclass(frozen=True, slots=True)
class _NewResponse:
    """A response that is being created."""

    http: Request
    id: str
    request: ResponseRequest
    items: Sequence[Json]
    conversation: Conversation
    created_at: float

    async def generate(self) -> Response | ASGIApp:
        """Answer with the whole response, or stream it."""
        http, request, state = self.http, self.request, app_state(self.http)
        endpoint = endpoint_at(RESPONSES)
        generation = await plan_generation(http, endpoint, request)
        generation.on_end = await state.rate_limits.admit(http, generation.usage.prompt_tokens)
        note_ignored(http, endpoint.unused_parameters(request, generation.model.tokenizer))
        head = completion_response.ResponseHead(
            RESPONSES, self.id, state.settings.model_name, int(self.created_at)
        )
        generated = GeneratedResponse(generation, head, request.body.is_stored, self._store)
        if request.body.stream:
            return EventStream(http, generated.events(), end=b"")
        return Response(await while_connected(http, generated.body()), media_type="application/json")

    async def start(self) -> Response | ASGIApp:
        """Create the job of a response in the background, and answer with the response, or stream it."""
        state, body = app_state(self.http), self.request.body
        model = state.settings.model_names.resolve(body.model)
        head = ResponseHead(self.id, model, self.created_at, not body.runs_as_chat, True)
        begun = msgspec.json.encode({**response_object(head, self.request), "status": "queued"})
        item = await asyncio.to_thread(item_body, body, [*self.conversation.items, *self.items], self.id)
        priority = AS_CHAT_PRIORITY if body.runs_as_chat else 0
        notify = await notify_target(self.http)
        if body.runs_as_chat:
            await state.rate_limits.admit(self.http, 0)

        def query(connection: Connection) -> None:
            if response_jobs.num_unfinished(connection, self._key_id) >= response_jobs.MAX_UNFINISHED:
                raise _too_many()
            check_bulk_limits(connection, self.http, 1, noun="response", is_job=False)
            job_id = response_jobs.create_response_job(
                connection,
                endpoint=RESPONSES,
                model=model,
                body=item,
                priority=priority,
                now_s=self.created_at,
                owner=owner_of(self.http),
                notify_url=notify.url,
                notify_key_id=notify.key_id,
            )
            responses.create_response(connection, self._row(begun, job_id), self.conversation.ancestor_ids)

        await state.write(query)
        log_change(self.http.scope, "response.created", response=self.id)
        state.dispatcher.send("prepare", model)
        if body.stream:
            return EventStream(self.http, stored_events(self.http, self.id, -1), end=b"")
        return Response(begun, media_type="application/json")

    async def _store(self, response: bytes) -> bool:
        """Store a complete response. An answer is worth more than its copy: if the database is unavailable, the client
        gets it all the same, and reads in it that it was not stored."""

        def query(connection: Connection) -> None:
            responses.create_response(connection, self._row(response, None), self.conversation.ancestor_ids)

        try:
            await app_state(self.http).write(query)
        except ApiError as error:
            logger.error("the response %s could not be stored: %s", self.id, error.message)
            return False
        return True

    def _row(self, response: bytes, job_id: str | None) -> StoredResponse:
        settings = app_state(self.http).settings
        return StoredResponse(
            id=self.id,
            key_id=self._key_id,
            previous_id=self.request.body.previous_response_id,
            job_id=job_id,
            num_ancestors=len(self.conversation.ancestor_ids),
            ancestor_bytes=self.conversation.num_bytes,
            input=msgspec.json.encode(self.items).decode(),
            body=response.decode(),
            created_at=self.created_at,
            expires_at=expiry_of(self.created_at, settings.file_retention_s),
            owner=owner_of(self.http),
        )

    @property
    def _key_id(self) -> str:
        key = self.http.scope["state"].get("key")
        return "" if key is None else str(key.id)


def _too_many() -> ApiError:
    message = (
        f"This API key has {response_jobs.MAX_UNFINISHED:,} responses in the background that have not ended, which is "
        "the most. Wait for some of them, or send the requests as a file: POST /v1/batches."
    )
    return ApiError(429, message, param="background", code="too_many_responses", retry_after_s=10.0)
