"""The routes of all endpoints whose requests an engine computes: responses as a whole, and text also as a stream."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bros_batch.openai_api.completion_response import (
    ResponseHead,
    chat_chunk_choices,
    chunk_head,
    empty_chunk_choice,
    opening_chunk_choice,
    text_chunk_choice,
    usage_object,
)
from bros_batch.openai_api.endpoints import ENDPOINTS, RESPONSES
from bros_batch.openai_api.registry import endpoint_at
from bros_batch.openai_api.text_request import StreamOptions, TextRequest
from bros_batch.web.api.event_stream import EventStream, event
from bros_batch.web.app_state import app_state
from bros_batch.web.client_disconnect import while_connected
from bros_batch.web.generation import Generation
from bros_batch.web.generation_plan import plan_generation
from bros_batch.web.ignored_fields import note_ignored


async def complete(http: HttpRequest) -> Response | ASGIApp:
    """Serve a request to any of the endpoints, which differ in the bodies that they read and write."""
    state = app_state(http)
    endpoint = endpoint_at(http.url.path)
    request = await state.parsed(http, endpoint.parse)
    generation = await plan_generation(http, endpoint, request)
    generation.on_end = await state.rate_limits.admit(http, generation.usage.prompt_tokens)
    head = ResponseHead(request.endpoint, http.state.request_id, state.settings.model_name, int(time.time()))
    note_ignored(http, endpoint.unused_parameters(request, generation.model.tokenizer))
    if isinstance(request, TextRequest) and request.stream:
        return EventStream(http, CompletionStream(generation, head, request.stream_options).events())
    body = await while_connected(http, generation.encoded_response(head))
    return Response(body, media_type="application/json")


@dataclass(frozen=True, slots=True)
class CompletionStream:
    """A generation as OpenAI's chunks."""

    generation: Generation
    head: ResponseHead
    options: StreamOptions | None

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield the server-sent events of a streamed response, except the final `[DONE]`."""
        options = self.options
        with_usage = options is not None and options.include_usage
        in_every_chunk = options is not None and options.continuous_usage_stats
        is_chat = self.head.is_chat
        head = chunk_head(self.head)
        # If usage is asked for, every chunk has the field, and a final chunk without choices has its value. If the
        # request asks for that, the other chunks have the usage so far of their output, as in vLLM.
        rest: dict[str, Any] = {"usage": None} if with_usage else {}
        opened: set[int] = set()
        async with contextlib.aclosing(self.generation.updates()) as updates:
            async for update in updates:
                if in_every_chunk:
                    prompt_tokens = self.generation.usage.prompt_tokens
                    reasoning = (
                        None if self.generation.form.reasoning is None else update.num_reasoning_tokens
                    )
                    rest["usage"] = usage_object(prompt_tokens, update.num_tokens, reasoning_tokens=reasoning)
                if is_chat:
                    choices = chat_chunk_choices(
                        self.head.request_id, update.index, update.piece, update.finish_reason
                    )
                    if update.index not in opened:
                        opened.add(update.index)
                        if update.finish_reason is not None and len(choices) == 1:
                            choices.insert(0, empty_chunk_choice(update.index))
                        choices.insert(0, opening_chunk_choice(update.index))
                else:
                    choices = [text_chunk_choice(update.index, update.piece, update.finish_reason)]
                yield b"".join([event({**head, "choices": [choice], **rest}) for choice in choices])
        if with_usage:
            yield event({**head, "choices": [], "usage": chat_usage(self.generation)})


def chat_usage(generation: Generation) -> dict[str, Any]:
    """Return OpenAI's `usage` object for a generation that is complete."""
    usage = generation.usage
    reasoning = None if generation.form.reasoning is None else usage.reasoning_tokens
    return usage_object(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, reasoning)


routes = [Route(path, complete, methods=["POST"]) for path in ENDPOINTS if path != RESPONSES]
