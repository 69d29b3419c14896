"""`/v1/chat/completions` and `/v1/completions`, streamed and not."""

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

from bros_batch.openai_api.answers import (
    chat_completion_body,
    chat_completion_id,
    chat_logprobs,
    completion_body,
    completion_id,
    completion_logprobs,
    usage_of,
)
from bros_batch.openai_api.completion_requests import ChatCompletionRequest, Request, parse_body
from bros_batch.web.api.event_stream import EventStream, event
from bros_batch.web.api.generation import Generation, Update, prepare
from bros_batch.web.app_state import services_of
from bros_batch.web.errors import JSONResponse
from bros_batch.web.request_body import read_body, while_connected


async def complete(http: HttpRequest) -> Response | ASGIApp:
    """Both endpoints: they differ in the bodies that they read and write."""
    services = services_of(http)
    raw = await read_body(http, services.settings.max_body_bytes)
    request = parse_body(http.url.path, raw)
    generation = await prepare(services, request)
    answer = Answer(generation, http.state.request_id, services.settings.model_name, int(time.time()))
    if request.stream:
        return EventStream(http, answer.events())
    return JSONResponse(await while_connected(http, answer.body()))


@dataclass(frozen=True, slots=True)
class Answer:
    """A generation as JSON: whole, or in chunks."""

    generation: Generation
    request_id: str
    model: str
    created: int

    @property
    def request(self) -> Request:
        return self.generation.request

    async def body(self) -> dict[str, Any]:
        choices = await self.generation.choices()
        make = chat_completion_body if self._is_chat else completion_body
        return make(
            request_id=self.request_id,
            model=self.model,
            created=self.created,
            choices=choices,
            usage=self._usage(),
        )

    async def events(self) -> AsyncGenerator[bytes]:
        """The events of a stream, without its `[DONE]`."""
        options = self.request.stream_options
        with_usage = options is not None and options.include_usage
        head = {
            "id": (chat_completion_id if self._is_chat else completion_id)(self.request_id),
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }
        # With usage asked for, every chunk has the field, and a last one without choices has its value.
        rest: dict[str, Any] = {"usage": None} if with_usage else {}
        begun: set[int] = set()
        async with contextlib.aclosing(self.generation.updates()) as updates:
            async for update in updates:
                lines = []
                if self._is_chat and update.index not in begun:
                    begun.add(update.index)
                    opening = {"role": "assistant", "content": "", "refusal": None}
                    lines.append(event({**head, "choices": [_chat_choice(update.index, opening)], **rest}))
                lines += [event({**head, "choices": [choice], **rest}) for choice in self._choices_of(update)]
                yield b"".join(lines)
        if with_usage:
            yield event({**head, "choices": [], "usage": self._usage()})

    def _choices_of(self, update: Update) -> list[dict[str, Any]]:
        piece = update.piece
        shown = bool(piece.text or piece.logprobs)
        if not self._is_chat:
            logprobs = completion_logprobs(piece.logprobs) if piece.logprobs else None
            choice = {"index": update.index, "text": piece.text, "logprobs": logprobs}
            return [{**choice, "finish_reason": update.finish_reason}]
        choices = []
        if shown:
            logprobs = chat_logprobs(piece.logprobs) if piece.logprobs else None
            choices.append(_chat_choice(update.index, {"content": piece.text}, logprobs))
        if update.finish_reason is not None:
            choices.append(_chat_choice(update.index, {}, None, update.finish_reason))
        return choices

    @property
    def _is_chat(self) -> bool:
        return isinstance(self.request, ChatCompletionRequest)

    def _usage(self) -> dict[str, Any]:
        usage = self.generation.usage
        return usage_of(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def _chat_choice(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


routes = [
    Route("/v1/chat/completions", complete, methods=["POST"]),
    Route("/v1/completions", complete, methods=["POST"]),
]
