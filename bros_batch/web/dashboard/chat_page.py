"""The chat page, and the stream of answers that its script reads."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from bros_batch.openai_api.chat_request import ChatCompletionRequest, parse_chat
from bros_batch.openai_api.completion_response import ResponseHead
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS
from bros_batch.openai_api.registry import endpoint_at
from bros_batch.web.api.completions import CompletionStream
from bros_batch.web.api.event_stream import EventStream
from bros_batch.web.app_state import app_state
from bros_batch.web.dashboard.rendering import Page
from bros_batch.web.errors import ApiError
from bros_batch.web.generation_plan import plan_generation


class Conversation(msgspec.Struct, omit_defaults=True):
    """Body of `POST /chat`: all messages so far, the JSON schema that the answer follows, if there is one, and what the
    person has set for the conversation."""

    messages: list[dict[str, str]]
    schema: dict[str, Any] | None = None
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


async def read_chat(_request: Request) -> Page:
    """The page, which is the same for everyone: a conversation exists only in the browser."""
    return Page("chat.html", {})


async def answer(request: Request) -> ASGIApp:
    """The next answer of a conversation, as a stream of OpenAI's chunks.

    The page cannot use the API itself: with a browser's session, the API only allows reading.
    """
    state = app_state(request)
    chat = await state.parsed(request, partial(_chat_request, state.settings.model_name))
    generation = await plan_generation(request, endpoint_at(CHAT_COMPLETIONS), chat)
    generation.on_end = await state.rate_limits.admit(request, generation.usage.prompt_tokens)
    head = ResponseHead(
        CHAT_COMPLETIONS, request.state.request_id, state.settings.model_name, int(time.time())
    )
    return EventStream(request, CompletionStream(generation, head, chat.stream_options).events())


def _chat_request(model: str, raw: bytes) -> ChatCompletionRequest:
    """The API's request for the next answer of the conversation in `raw`."""
    try:
        conversation = msgspec.json.decode(raw, type=Conversation)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"Not a conversation: {error}.", code="invalid_request") from None
    body: dict[str, Any] = {
        "model": model,
        **msgspec.to_builtins(conversation),
        "stream": True,
        # In every chunk, so that the tokens of an answer that is stopped are known.
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if body.pop("schema", None) is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": conversation.schema},
        }
    return parse_chat(json.dumps(body))
