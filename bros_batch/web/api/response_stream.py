"""The answer of a response as it is generated: whole, or as server-sent events."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from bros_batch.openai_api.completion_response import ResponseHead, chat_chunk_choices
from bros_batch.openai_api.responses.response_object import response_usage
from bros_batch.openai_api.responses.response_request import ResponseRequest
from bros_batch.openai_api.responses.response_writer import (
    ResponseWriter,
    logprobs_of,
)
from bros_batch.openai_api.responses.responses_endpoint import begun_response
from bros_batch.web.api.completions import chat_usage
from bros_batch.web.api.event_stream import event
from bros_batch.web.errors import ApiError
from bros_batch.web.generation import Generation

Json = dict[str, Any]


def named_event(data: Json) -> bytes:
    """Return one event as the Responses API sends it: with its type as the name of the event, too."""
    return b"event: " + str(data["type"]).encode() + b"\n" + event(data)


@dataclass(frozen=True, slots=True)
class GeneratedResponse:
    """A response that is generated while its client waits. `store` is called with the complete one before the client
    gets it; it returns whether the response was stored."""

    generation: Generation
    head: ResponseHead
    is_stored: bool
    store: Callable[[Json], Awaitable[bool]]

    async def body(self) -> Json:
        """Return the complete object."""
        response = {**await self.generation.response(self.head), "store": self.is_stored}
        if response["completed_at"] is not None:
            response["completed_at"] = int(time.time())
        response["store"] = await self.store(response)
        return response

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield the events. The first come with the first output, so that a rejected request has its own status."""
        generation, request = self.generation, self.generation.request
        assert isinstance(request, ResponseRequest)
        begun_object = begun_response(self.head, request, generation.model)
        writer = ResponseWriter({**begun_object, "store": self.is_stored})
        begun = False
        try:
            async with contextlib.aclosing(generation.updates()) as updates:
                async for update in updates:
                    if not begun:
                        begun = True
                        yield b"".join(map(named_event, writer.begin()))
                    for choice in chat_chunk_choices(
                        self.head.request_id, update.index, update.piece, update.finish_reason
                    ):
                        data = b"".join(map(named_event, writer.push(choice["delta"], logprobs_of(choice))))
                        if data:
                            yield data
                    if update.finish_reason is not None:
                        reason = update.finish_reason
        except ApiError as error:
            if not begun:
                raise
            yield b"".join(map(named_event, writer.fail(error.code or "server_error", error.message)))
            return
        last = [*writer.finish(reason, response_usage(chat_usage(generation)), time.time())]
        response = last[-1]["response"]
        response["store"] = await self.store(response)
        yield b"".join(map(named_event, last))
