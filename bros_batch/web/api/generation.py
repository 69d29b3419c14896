"""One HTTP request's outputs from the engine: as many engine requests as it has prompts times choices."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import msgspec

from bros_batch.openai_api.answers import FinishedChoice, FinishReason, OutputText, Piece, TokenLogprob
from bros_batch.openai_api.completion_requests import (
    ChatCompletionRequest,
    Request,
    fitted_sampling,
    lane_of,
    slo_of,
)
from bros_batch.text.tokenizer import ModelText
from bros_batch.web.app_state import WebServices
from bros_batch.web.errors import ApiError, of_engine
from engine.wire.client import EngineClient, EngineGone, EngineRejected
from engine.wire.protocol import Finished, Sampling

MAX_OUTPUTS = 256
# Below this much text, tokenising takes less time than handing it to a thread.
INLINE_CHARS = 16_384


@dataclass(slots=True)
class Usage:
    """Tokens of the whole request; a prompt counts once however many choices it gets."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Update:
    """A further piece of output `index`; its last has the reason why it ended."""

    index: int
    piece: Piece
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One output to come."""

    index: int
    token_ids: list[int]
    sampling: Sampling
    counts_prompt: bool


@dataclass(slots=True)
class Generation:
    """A request that the engine can run. Iterate `updates`; `usage` is complete at their end."""

    request: Request
    text: ModelText
    client: EngineClient
    outputs: Sequence[Output]
    usage: Usage = field(default_factory=Usage)

    async def updates(self) -> AsyncGenerator[Update]:
        """Updates of all outputs as they come. ApiError when the engine refuses or fails; leaving early cancels."""
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
            raise of_engine(error, prompt_param(self.request)) from error

    async def choices(self) -> list[FinishedChoice]:
        """All outputs, whole."""
        texts: list[list[str]] = [[] for _ in self.outputs]
        logprobs: list[list[TokenLogprob]] = [[] for _ in self.outputs]
        reasons: dict[int, FinishReason] = {}
        async with contextlib.aclosing(self.updates()) as updates:
            async for update in updates:
                texts[update.index].append(update.piece.text)
                logprobs[update.index] += update.piece.logprobs
                if update.finish_reason is not None:
                    reasons[update.index] = update.finish_reason
        asked = self.request.num_logprobs is not None
        return [
            FinishedChoice(index, "".join(text), reasons[index], logprobs[index] if asked else None)
            for index, text in enumerate(texts)
        ]

    async def _updates_of(self, output: Output) -> AsyncGenerator[Update]:
        decoder = OutputText(self.text, output.sampling)
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
                    self._count(output, message.prompt_tokens, message.output_tokens, message.cached_tokens)
                    reason = _reason(message)
                    last = decoder.finish(reason)
                    yield Update(output.index, last, "stop" if decoder.stopped else reason)
                    return
                num_tokens += len(message.ids)
                piece = decoder.push(message.ids, message.logprobs)
                if decoder.stopped:
                    # The engine sees stop strings too, but its end may come a step later: no need to wait.
                    self._count(output, len(output.token_ids), num_tokens, 0)
                    yield Update(output.index, piece, "stop")
                    return
                if piece.text or piece.logprobs:
                    yield Update(output.index, piece)

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

    def _count(self, output: Output, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> None:
        self.usage.completion_tokens += completion_tokens
        if output.counts_prompt:
            self.usage.prompt_tokens += prompt_tokens
            self.usage.cached_tokens += cached_tokens


def prompt_param(request: Request) -> str:
    return "messages" if isinstance(request, ChatCompletionRequest) else "prompt"


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


async def prepare(services: WebServices, request: Request) -> Generation:
    """Everything that can be refused before the engine is asked. Raises ApiError or RequestError."""
    try:
        client = await services.engine.client()
    except EngineGone as error:
        raise of_engine(error) from error
    served = services.settings.model_name
    if request.model not in (served, client.welcome.model):
        message = f"The model '{request.model}' is not served here; there is '{served}'."
        raise ApiError(404, message, param="model", code="model_not_found")
    text = await services.text()
    if _num_chars(request) < INLINE_CHARS:
        prompts = text.encode_request(request)
    else:
        prompts = await asyncio.to_thread(text.encode_request, request)
    if len(prompts) * request.num_choices > MAX_OUTPUTS:
        message = (
            f"{len(prompts)} prompts with {request.num_choices} choices each are over {MAX_OUTPUTS} outputs."
        )
        raise ApiError(400, message, param="n", code="invalid_request")
    outputs: list[Output] = []
    for token_ids in prompts:
        sampling = fitted_sampling(
            request,
            len(token_ids),
            max_model_len=client.welcome.max_model_len,
            default_max_tokens=services.settings.default_max_tokens,
        )
        for choice in range(request.num_choices):
            outputs.append(Output(len(outputs), token_ids, _seeded(sampling, choice), choice == 0))
    return Generation(request, text, client, outputs)


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """Each choice of a seeded request draws by a seed of its own, or all would be the same."""
    if sampling.seed is None or choice == 0:
        return sampling
    return msgspec.structs.replace(sampling, seed=sampling.seed + choice)


def _num_chars(request: Request) -> int:
    if isinstance(request, ChatCompletionRequest):
        return sum(len(message.content) for message in request.messages)
    prompt = request.prompt
    return (
        len(prompt) if isinstance(prompt, str) else sum(len(each) for each in prompt if isinstance(each, str))
    )
