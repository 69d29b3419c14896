"""The answer of a response as it is generated: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from bros_batch.openai_api.completion_response import ResponseHead, chat_chunk_choices
from bros_batch.openai_api.responses.encoded_response import with_members
from bros_batch.openai_api.responses.response_object import response_usage
from bros_batch.openai_api.responses.response_request import ResponseRequest
from bros_batch.openai_api.responses.response_writer import (
    ResponseWriter,
    logprobs_of,
)
from bros_batch.openai_api.responses.responses_endpoint import begun_response
from bros_batch.web.api.completions import chat_usage
from bros_batch.web.errors import ApiError
from bros_batch.web.generation import INLINE_VALUES, Generation
from bros_batch.web.json_pieces import encoded_in_pieces

Json = dict[str, Any]

NOT_STORED = {"store": False}
DELTAS = (
    "response.output_text.delta",
    "response.reasoning_text.delta",
    "response.function_call_arguments.delta",
)


def named_event(data: Json) -> bytes:
    """Return one event as the Responses API sends it: with its type as the name of the event, too."""
    return _named(data, msgspec.json.encode(data))


def _in_pieces(events: Sequence[Json]) -> bytes:
    return b"".join(_named(each, encoded_in_pieces(each)) for each in events)


def _named(data: Json, encoded: bytes) -> bytes:
    return b"event: " + str(data["type"]).encode() + b"\ndata: " + encoded + b"\n\n"


@dataclass(slots=True)
class GeneratedResponse:
    """A response that is generated while its client waits.

    With `is_stored`, `store` is called with the complete one before the client gets it; it returns whether that worked.
    """

    generation: Generation
    head: ResponseHead
    is_stored: bool
    store: Callable[[bytes], Awaitable[bool]]
    _num_values: int = 0  # log-probabilities so far

    async def body(self) -> bytes:
        """Return the complete object."""
        body = await self.generation.encoded_response(self.head, self._completed)
        if self.is_stored and not await self.store(body):
            body = await asyncio.to_thread(with_members, body, NOT_STORED)
        return body

    def _completed(self, response: Json) -> Json:
        is_complete = response["completed_at"] is not None
        return {
            **response,
            "store": self.is_stored,
            "completed_at": int(time.time()) if is_complete else None,
        }

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
                    self._num_values += sum(1 + len(each.top) for each in update.piece.logprobs)
                    for choice in chat_chunk_choices(
                        self.head.request_id, update.index, update.piece, update.finish_reason
                    ):
                        if written := [*writer.push(choice["delta"], logprobs_of(choice))]:
                            yield await self._encoded(written)
                    if update.finish_reason is not None:
                        reason = update.finish_reason
        except ApiError as error:
            if not begun:
                raise
            yield await self._encoded([*writer.fail(error.code or "server_error", error.message)])
            return
        last = [*writer.finish(reason, response_usage(chat_usage(generation)), time.time())]
        response = last[-1]["response"]
        if self.is_stored:
            response["store"] = await self.store(await asyncio.to_thread(encoded_in_pieces, response))
        yield await self._encoded(last)

    async def _encoded(self, events: Sequence[Json]) -> bytes:
        """Return events as bytes. Those that end a text have all of its log-probabilities again."""
        if self._num_values < INLINE_VALUES or all(each["type"] in DELTAS for each in events):
            return b"".join(map(named_event, events))
        return await asyncio.to_thread(_in_pieces, events)
