"""Generates the outputs of one HTTP request: one engine request per prompt and choice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from bros_batch.openai_api.completion_response import Json, ResponseHead
from bros_batch.openai_api.endpoint import Endpoint, Outcome, ServedModel
from bros_batch.openai_api.engine_requests import EngineRequests
from bros_batch.openai_api.sampling import lane_of, slo_of
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.text.message_decoder import MessageDecoder
from bros_batch.text.message_form import MessageForm
from bros_batch.text.output_decoder import FinishReason, OutputDecoder, Piece, StopReason
from bros_batch.web.errors import ApiError, engine_error
from bros_batch.web.json_pieces import encoded_in_pieces
from bros_batch.web.merged_generators import merged
from bros_batch.web.part_groups import ask_in_groups
from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineGone, EngineRejected
from engine.wire.engine_stream import EngineStream
from engine.wire.item_messages import Choice
from engine.wire.protocol import Finished, PartsFinished, Tokens
from engine.wire.request_terms import PROMPT_TAIL_TOKENS, Part, PositionLogprobs, Sampling

# Tokenizing less text than this, or writing a response of fewer values, takes less time than others may wait.
INLINE_CHARS = 16_384
INLINE_VALUES = 1024
# So many outputs of one request are computed at once. Each has its whole prompt in memory.
MAX_PARALLEL = 256


@dataclass(slots=True)
class Usage:
    """Token counts of the whole request. A prompt counts once, for all its choices."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Update:
    """The next piece of output `index`, which has `num_tokens` tokens so far, `num_reasoning_tokens` of them before
    the answer. The last one has the finish reason."""

    index: int
    piece: Piece
    num_tokens: int
    num_reasoning_tokens: int = 0
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One output to generate. `counts_prompt` is true for the first choice of each prompt."""

    index: int
    part: Part
    sampling: Sampling
    counts_prompt: bool


@dataclass(slots=True)
class Generation:
    """A request as the engine can run it. Get the whole `encoded_response`, or iterate over `updates`.

    `usage` is complete at the end.
    """

    endpoint: Endpoint[Any]
    request: ServedRequest
    model: ServedModel
    form: MessageForm
    client: EngineClient
    work: EngineRequests
    outputs: Sequence[Output]
    usage: Usage
    asker: str
    on_end: Callable[[int], None] | None = (
        None  # called with the tokens of the output when no more are computed
    )

    async def encoded_response(
        self, head: ResponseHead, complete: Callable[[Json], Json] = lambda body: body
    ) -> bytes:
        """Return the response body as JSON, after `complete` has had it. Raises ApiError if the engine rejects the
        request or fails."""
        outcome = await self._outcome()

        def respond() -> Json:
            return complete(self.endpoint.response(head, self.request, self.model, outcome))

        if self._is_short(outcome):
            return msgspec.json.encode(respond())
        return await asyncio.to_thread(lambda: encoded_in_pieces(respond()))

    def _is_short(self, outcome: Outcome) -> bool:
        """Whether others can wait while the response is written."""
        # What shows the prompt tokenizes it again.
        is_long = self.request.shows_prompt and self.request.num_prompt_chars >= INLINE_CHARS
        return outcome.num_values < INLINE_VALUES and not is_long

    async def updates(self) -> AsyncGenerator[Update]:
        """Yield the updates of all outputs as they arrive; closing the generator early cancels the request.

        Raises ApiError if the engine rejects the request or fails.
        """
        each = [self._updates_of(output) for output in self.outputs]
        try:
            async with contextlib.aclosing(each[0] if len(each) == 1 else merged(each)) as updates:
                async for update in updates:
                    yield update
        except (EngineGone, EngineRejected) as error:
            raise engine_error(error, self.request) from error
        finally:
            self._end()

    def _end(self) -> None:
        if self.on_end is not None:
            self.on_end(self.usage.completion_tokens)

    async def _outcome(self) -> Outcome:
        try:
            if any(output.sampling.max_tokens for output in self.outputs):
                choices = await self._choices()
            else:
                choices = await self._choices_without_tokens()
        except (EngineGone, EngineRejected) as error:
            raise engine_error(error, self.request) from error
        finally:
            self._end()
        tails = [choice.prompt_tail for choice in choices]
        return Outcome(choices, tails, self.usage.prompt_tokens, self.usage.cached_tokens)

    async def _choices(self) -> list[Choice]:
        try:
            async with asyncio.TaskGroup() as group:
                room = asyncio.Semaphore(MAX_PARALLEL)
                tasks = [group.create_task(self._choice_of(output, room)) for output in self.outputs]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _choices_without_tokens(self) -> list[Choice]:
        """Return outputs that only ask about their prompts. There may be many."""
        parts = [Part(output.part.token_ids, output.sampling) for output in self.outputs]
        ends = await ask_in_groups(self._ask, parts, len(self.work.shared_ids))
        choices = []
        for output, end in zip(self.outputs, ends, strict=True):
            if output.counts_prompt:
                self.usage.cached_tokens += end.cached_tokens
            tail = self.work.prompt_tail_of(output.part)
            answer = (end.scores, end.prompt_logprobs, end.embedding)
            choices.append(Choice([], "length", None, *answer, tail))
        return choices

    async def _ask(self, parts: Sequence[Part]) -> PartsFinished:
        request = self.request
        answer = await self.client.ask(
            self.work.shared_ids,
            parts,
            lane=lane_of(request),
            slo=slo_of(request),
            priority=request.priority or 0,
            owner=self.asker,
        )
        if not isinstance(answer, PartsFinished):
            raise _failure(answer)
        return answer

    def _submitted(self, output: Output, prompt: list[int]) -> EngineStream:
        request = self.request
        return self.client.submit(
            prompt,
            output.sampling,
            lane=lane_of(request),
            slo=slo_of(request),
            priority=request.priority or 0,
            owner=self.asker,
        )

    async def _choice_of(self, output: Output, room: asyncio.Semaphore) -> Choice:
        """Return one output as a whole, once there is room for it."""
        async with room:
            return await self._computed(output)

    async def _computed(self, output: Output) -> Choice:
        prompt = self.work.prompt_of(output.part)
        token_ids: list[int] = []
        logprobs: list[PositionLogprobs] = []
        decoder = OutputDecoder(self.model.tokenizer, output.sampling, prompt)
        end: Finished | None = None
        async with contextlib.aclosing(self._messages(output, prompt, decoder)) as messages:
            async for message in messages:
                if isinstance(message, Finished):
                    end = message
                    break
                token_ids += message.ids
                logprobs += message.logprobs or ()
                if output.sampling.stop:
                    decoder.push(message.ids, message.logprobs)
        assert end is not None  # a stream that ends early raises an error
        return _choice(token_ids, end, logprobs or None, prompt[-PROMPT_TAIL_TOKENS:])

    async def _updates_of(self, output: Output) -> AsyncGenerator[Update]:
        prompt = self.work.prompt_of(output.part)
        decoder = self.form.decoder(self.model.tokenizer, output.sampling, prompt)
        num_tokens = 0
        async with contextlib.aclosing(self._messages(output, prompt, decoder)) as messages:
            async for message in messages:
                if isinstance(message, Finished):
                    yield self._last_update(output, decoder, num_tokens, _reason(message))
                    return
                num_tokens += len(message.ids)
                piece = decoder.push(message.ids, message.logprobs)
                if not piece.is_empty:
                    yield Update(output.index, piece, num_tokens, decoder.num_reasoning_tokens)

    async def _messages(
        self, output: Output, prompt: list[int], decoder: OutputDecoder | MessageDecoder
    ) -> AsyncGenerator[Tokens | Finished]:
        """Yield the tokens that the engine sends for one output, and its end. They are counted in `usage`.

        The output ends early when its decoder has stopped. Closing the generator early cancels the request.
        """
        stream = self._submitted(output, prompt)
        async with stream, contextlib.aclosing(aiter(stream)) as messages:  # type: ignore[type-var]
            async for message in messages:
                if isinstance(message, Finished):
                    if output.counts_prompt:
                        self.usage.cached_tokens += message.cached_tokens
                    yield message
                    return
                if decoder.stopped:
                    # The engine ends at the same token and says so in the same write. Should it have found another
                    # text, what it computes beyond the stop string is of no use.
                    yield Finished("", "stop", prompt_tokens=0, output_tokens=0)
                    return
                self.usage.completion_tokens += len(message.ids)
                yield message

    def _last_update(
        self, output: Output, decoder: OutputDecoder | MessageDecoder, num_tokens: int, reason: StopReason
    ) -> Update:
        piece = decoder.finish("stop" if decoder.stopped else reason)
        self.usage.reasoning_tokens += decoder.num_reasoning_tokens
        finish_reason = decoder.finish_reason(reason)
        return Update(output.index, piece, num_tokens, decoder.num_reasoning_tokens, finish_reason)


def _choice(
    token_ids: list[int], end: Finished, logprobs: list[PositionLogprobs] | None, prompt_tail: list[int]
) -> Choice:
    """Return an output that has ended. Raises ApiError if the engine failed."""
    return Choice(
        token_ids,
        _reason(end),
        logprobs,
        scores=end.scores,
        prompt_logprobs=end.prompt_logprobs,
        embedding=end.embedding,
        prompt_tail=prompt_tail,
    )


def _reason(finished: Finished) -> StopReason:
    match finished.reason:
        case "stop" | "length":
            return finished.reason
        case _:
            raise _failure(finished)


def _failure(finished: Finished) -> ApiError:
    """Return the response for a request that ended without an answer."""
    if finished.reason == "abort":
        return ApiError(503, "The engine is shutting down.", code="aborted", retry_after_s=1.0)
    return ApiError(500, finished.message or "The engine failed to run this request.", code="engine_error")
