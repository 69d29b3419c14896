"""The events of a response in the background, while it is generated and afterwards.

Each event has the same number whenever it is sent, so that a stream can be taken up again after any of them: the deltas
of a text are pieces of a fixed length, whatever tokens they come from. If an output is lost and computed again, it is
the same, since the requests of such responses have a seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request

from bros_batch.db.response_jobs import item_body
from bros_batch.db.responses import BackgroundItem, FoundResponse, find_response
from bros_batch.db.states import ItemStatus
from bros_batch.openai_api.batch_output import request_id
from bros_batch.openai_api.completion_response import chat_chunk_choices
from bros_batch.openai_api.endpoints import RESPONSES
from bros_batch.openai_api.registry import endpoint_at
from bros_batch.openai_api.responses.encoded_response import decoded_response
from bros_batch.openai_api.responses.response_writer import (
    PIECE_CHARS,
    ResponseWriter,
    begun_events,
    replayed_events,
)
from bros_batch.openai_api.sampling import sampling_of
from bros_batch.openai_api.sampling_defaults import SamplingDefaults, sampling_defaults
from bros_batch.request_error import RequestError
from bros_batch.text.tokenizer import ModelTokenizer
from bros_batch.web.api.response_stream import named_event
from bros_batch.web.app_state import app_state
from bros_batch.web.auth import still_has_access
from bros_batch.web.response_state import current_response, is_ended
from engine.wire.item_messages import Choice

Json = dict[str, Any]

POLL_S = 0.2  # for more output
POLLS_PER_READ = 3  # of the database
BLOCK_BYTES = 65_536
# How an output may end of which some deltas have been sent, and which has no output then.
WITHOUT_OUTPUT = ("cancelled", "failed")


async def stored_events(http: Request, response_id: str, after: int) -> AsyncGenerator[bytes]:
    """Yield the events of a stored response with a number above `after`, and wait for those that are to come."""
    state = app_state(http)
    live: _LiveOutput | None = None
    while True:
        found = await state.read(lambda connection: find_response(connection, response_id))
        if found is None:
            return  # it was deleted
        if is_ended(found):
            blocks = await asyncio.to_thread(_replayed, found, after)
            while block := await asyncio.to_thread(next, blocks, b""):
                yield block
            return
        response = await asyncio.to_thread(_decoded, found)
        for each in begun_events(response):
            if each["sequence_number"] > after:
                after = each["sequence_number"]
                yield named_event(each)
        if http.app.state.is_stopping() or not await still_has_access(http):
            return
        state.dispatcher.record_soon()
        if live is None or not live.is_of(found):
            live = await _live_output(http, found, response)
        for _ in range(POLLS_PER_READ):
            await asyncio.sleep(POLL_S)
            if live is None:
                continue
            output = await state.item_outputs.so_far(live.item.id, live.item.epoch)
            for each in live.push(output) if output is not None else ():
                if each["sequence_number"] > after:
                    after = each["sequence_number"]
                    yield named_event(each)


def _decoded(found: FoundResponse) -> Json:
    return decoded_response(current_response(found))


def _replayed(found: FoundResponse, after: int) -> Iterator[bytes]:
    """Return the events of a response that has ended, those with a number above `after`, in blocks."""
    response = _decoded(found)
    events = replayed_events(response)
    last = events[-1]
    if response["status"] in WITHOUT_OUTPUT and last["sequence_number"] <= after:
        events[-1] = {**last, "sequence_number": after + 1}
    return _blocks(each for each in events if each["sequence_number"] > after)


def _blocks(events: Iterable[Json]) -> Iterator[bytes]:
    """Yield encoded events, joined to blocks of some length."""
    pieces: list[bytes] = []
    num_bytes = 0
    for each in events:
        pieces.append(named_event(each))
        num_bytes += len(pieces[-1])
        if num_bytes >= BLOCK_BYTES:
            yield b"".join(pieces)
            pieces, num_bytes = [], 0
    yield b"".join(pieces)


async def _live_output(http: Request, found: FoundResponse, response: Json) -> _LiveOutput | None:
    """Return the output of a response that an engine is computing; None if none is."""
    item, job_id = found.item, found.row.job_id
    if item is None or job_id is None or item.status != ItemStatus.QUEUED:
        return None
    state = app_state(http)

    def query(connection: Connection) -> str | None:
        return item_body(connection, job_id)

    body = await state.read(query)
    if body is None:
        return None
    tokenizer = await state.tokenizer()
    defaults = sampling_defaults(state.settings, tokenizer.recommended_sampling)
    try:
        return await asyncio.to_thread(_LiveOutput, item, body, response, tokenizer, defaults)
    except RequestError:  # the worker says so in the item
        return None


class _LiveOutput:
    """An output that grows, as events that have the numbers which they will have when it has ended."""

    def __init__(
        self,
        item: BackgroundItem,
        body: str,
        response: Json,
        tokenizer: ModelTokenizer,
        defaults: SamplingDefaults,
    ) -> None:
        self.item = item
        endpoint = endpoint_at(RESPONSES)
        request = endpoint.parse(body)
        self._sampling = sampling_of(request, defaults)
        self._form = endpoint.message_form(request, tokenizer)
        self._tokenizer = tokenizer
        self._decoder = self._form.decoder(tokenizer, self._sampling)
        self._writer = ResponseWriter(response, PIECE_CHARS)
        self._writer.skip(begun_events({**response, "status": "in_progress"}))
        self._num_tokens = 0
        self._has_calls = self._is_held = False

    def is_of(self, found: FoundResponse) -> bool:
        """Whether this is what an engine computes now. Otherwise it was taken back or lost, and begins again."""
        return found.item is not None and found.item.epoch == self.item.epoch

    def push(self, output: Choice) -> Iterator[Json]:
        """Yield the events that the output so far adds."""
        if not self._num_tokens:
            self._decoder = self._form.decoder(self._tokenizer, self._sampling, output.prompt_tail)
        new_ids = output.token_ids[self._num_tokens :]
        self._num_tokens += len(new_ids)
        piece = self._decoder.push(new_ids)
        # In the complete output, text that follows calls is before them: it comes at the end.
        self._is_held |= self._has_calls and bool(piece.text)
        self._has_calls |= bool(piece.calls)
        if self._is_held:
            return
        for choice in chat_chunk_choices(request_id(self.item.id, self.item.epoch), 0, piece, None):
            yield from self._writer.push(choice["delta"])
