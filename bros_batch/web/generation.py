"""Generates the outputs of one HTTP request: one engine request per prompt and choice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from bros_batch.openai_api.completion_request import Request
from bros_batch.openai_api.engine_limits import check_limits
from bros_batch.openai_api.prompts import encode_prompts
from bros_batch.openai_api.sampling import fitted_sampling, lane_of, slo_of
from bros_batch.openai_api.sampling_defaults import sampling_defaults
from bros_batch.request_error import RequestError
from bros_batch.text.output_decoder import FinishedChoice, FinishReason, OutputDecoder, Piece, TokenLogprob
from bros_batch.text.tokenizer import ModelTokenizer
from bros_batch.web.app_state import AppState
from bros_batch.web.errors import ApiError, engine_error
from engine.wire.client import EngineClient, EngineGone, EngineRejected
from engine.wire.protocol import Finished, Sampling

MAX_OUTPUTS = 256
# Tokenizing less text than this takes less time than handing it to a thread.
INLINE_CHARS = 16_384


@dataclass(slots=True)
class Usage:
    """Token counts of the whole request. A prompt counts once, for all its choices."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Update:
    """The next piece of output `index`, which has `num_tokens` tokens so far. The last one has the finish reason."""

    index: int
    piece: Piece
    num_tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One output to generate. `counts_prompt` is true for the first choice of each prompt."""

    index: int
    token_ids: list[int]
    sampling: Sampling
    counts_prompt: bool


@dataclass(slots=True)
class Generation:
    """A request as the engine can run it. Iterate over `updates`; `usage` is complete at their end."""

    request: Request
    tokenizer: ModelTokenizer
    client: EngineClient
    outputs: Sequence[Output]
    usage: Usage

    async def updates(self) -> AsyncGenerator[Update]:
        """Yield the updates of all outputs as they arrive; closing the generator early cancels the request.

        Raises ApiError if the engine rejects the request or fails.
        """
        try:
            if len(self.outputs) == 1:
                async with contextlib.aclosing(self._updates_of(self.outputs[0])) as updates:
                    async for update in updates:
                        yield update
            else:
                async with contextlib.aclosing(self._merged()) as updates:
                    async for update in updates:
                        yield update
        except (EngineGone, EngineRejected) as error:
            raise engine_error(error, self.request.prompt_param) from error

    async def choices(self) -> list[FinishedChoice]:
        """Return all outputs, each complete."""
        texts: list[list[str]] = [[] for _ in self.outputs]
        logprobs: list[list[TokenLogprob]] = [[] for _ in self.outputs]
        reasons: dict[int, FinishReason] = {}
        async with contextlib.aclosing(self.updates()) as updates:
            async for update in updates:
                texts[update.index].append(update.piece.text)
                logprobs[update.index] += update.piece.logprobs
                if update.finish_reason is not None:
                    reasons[update.index] = update.finish_reason
        with_logprobs = self.request.num_logprobs is not None
        return [
            FinishedChoice(index, "".join(text), reasons[index], logprobs[index] if with_logprobs else None)
            for index, text in enumerate(texts)
        ]

    async def _updates_of(self, output: Output) -> AsyncGenerator[Update]:
        decoder = OutputDecoder(self.tokenizer, output.sampling, output.token_ids)
        request = self.request
        num_tokens = 0
        stream = self.client.submit(
            output.token_ids,
            output.sampling,
            lane=lane_of(request),
            slo=slo_of(request),
            priority=request.priority or 0,
        )
        async with stream, contextlib.aclosing(aiter(stream)) as messages:  # type: ignore[type-var]
            async for message in messages:
                if isinstance(message, Finished):
                    if output.counts_prompt:
                        self.usage.cached_tokens += message.cached_tokens
                    reason = "stop" if decoder.stopped else _reason(message)
                    yield Update(output.index, decoder.finish(reason), num_tokens, reason)
                    return
                if decoder.stopped:
                    # The engine ends at the same token and says so in the same write. Should it have found another
                    # text, what it computes beyond the stop string is of no use.
                    yield Update(output.index, decoder.finish("stop"), num_tokens, "stop")
                    return
                num_tokens += len(message.ids)
                self.usage.completion_tokens += len(message.ids)
                piece = decoder.push(message.ids, message.logprobs)
                if piece.text or piece.logprobs:
                    yield Update(output.index, piece, num_tokens)

    async def _merged(self) -> AsyncGenerator[Update]:
        queue: asyncio.Queue[Update | None] = asyncio.Queue()

        async def pump(output: Output) -> None:
            async with contextlib.aclosing(self._updates_of(output)) as updates:
                async for update in updates:
                    queue.put_nowait(update)

        async def pump_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for output in self.outputs:
                        group.create_task(pump(output))
            finally:
                queue.put_nowait(None)

        task = asyncio.create_task(pump_all())
        try:
            while (update := await queue.get()) is not None:
                yield update
            await task
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _reason(finished: Finished) -> FinishReason:
    match finished.reason:
        case "stop" | "length":
            return finished.reason
        case "abort":
            raise ApiError(503, "The engine is shutting down.", code="aborted", retry_after_s=1.0)
        case "error":
            raise ApiError(
                500, finished.message or "The engine failed to run this request.", code="engine_error"
            )


async def plan_generation(state: AppState, request: Request) -> Generation:
    """Check and tokenize `request`, and plan its outputs. Nothing is sent to the engine yet.

    Raises ApiError or RequestError for everything that can be rejected without asking the engine.
    """
    try:
        client = await state.engine.client()
    except EngineGone as error:
        raise engine_error(error) from error
    if request.model != client.welcome.model:
        state.settings.model_names.resolve(request.model)
    tokenizer = await state.tokenizer()
    if request.num_prompt_chars < INLINE_CHARS:
        prompts = encode_prompts(tokenizer, request)
    else:
        async with state.long_prompts:
            prompts = await asyncio.to_thread(encode_prompts, tokenizer, request)
    num_outputs = len(prompts) * request.num_choices
    if num_outputs > MAX_OUTPUTS:
        message = (
            f"{len(prompts)} prompts with {request.num_choices} choices each make {num_outputs} outputs; "
            f"at most {MAX_OUTPUTS} are allowed."
        )
        raise RequestError(message, "n")
    defaults = sampling_defaults(state.settings, tokenizer.recommended_sampling)
    outputs: list[Output] = []
    for token_ids in prompts:
        sampling = fitted_sampling(
            request,
            len(token_ids),
            max_model_len=client.welcome.max_model_len,
            defaults=defaults,
        )
        check_limits(request, token_ids, sampling, client.welcome, slo_of(request))
        for choice in range(request.num_choices):
            outputs.append(Output(len(outputs), token_ids, sampling.for_choice(choice), choice == 0))
    usage = Usage(prompt_tokens=sum(map(len, prompts)))
    return Generation(request, tokenizer, client, outputs, usage)
