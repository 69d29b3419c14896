"""An item that the engine pulled: its requests to the core, the outputs as they grow, and the result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from engine.core.events import FinishedEvent, TokenEvent
from engine.core.request import Request
from engine.core.terms import SLO, FinishReason, Lane
from engine.core.terms import Grammar as CoreGrammar
from engine.grammars.contract import Asker
from engine.lanes.translation import (
    embedding,
    monotonic_deadline_s,
    position_logprobs,
    prompt_logprobs,
    sampling_params,
    scores,
)
from engine.wire.item_messages import Choice, ItemRequest, ItemResult
from engine.wire.request_terms import PROMPT_TAIL_TOKENS, Grammar, Part, PositionLogprobs


class PulledItem:
    """The item of one stream entry, computed as n requests, or as n per part.

    `was_started` is true if another run of an engine had begun it. `token_ids` are those of each output so far.
    """

    def __init__(self, entry_id: bytes, item: ItemRequest) -> None:
        self.entry_id = entry_id
        self.item = item
        self.was_started = False
        self._parts = item.parts or [Part([], item.sampling)]
        number = len(self._parts) * item.n
        name = f"b{item.item_id}:{entry_id.decode()}"
        self.request_ids = [f"{name}.{i}" for i in range(number)]
        self.token_ids: list[list[int]] = [[] for _ in range(number)]
        self._logprobs: list[list[PositionLogprobs]] = [[] for _ in range(number)]
        self._ends: list[FinishedEvent | None] = [None] * number
        self._error: str | None = None

    @property
    def asker(self) -> Asker:
        """On whose behalf its grammars are compiled."""
        return Asker(self.item.owner, self.item.lane == "be")

    def output_so_far(self) -> Choice:
        """The tokens of the first output, and the end of its prompt."""
        return Choice(self.token_ids[0], "length", prompt_tail=self.item.token_ids[-PROMPT_TAIL_TOKENS:])

    def grammars(self) -> set[Grammar]:
        """The grammars of all outputs."""
        return {part.sampling.grammar for part in self._parts if part.sampling.grammar is not None}

    def requests(
        self, slo: SLO | None = None, grammars: Mapping[Grammar, CoreGrammar] | None = None
    ) -> Iterator[Request]:
        """Yield one request per output: of the RT lane with `slo`, of the BE lane without. If a prompt has a seed, its
        output i uses the seed plus i. `grammars`: what the grammars were compiled as."""
        item = self.item
        now_s = time.monotonic()
        deadline_s = monotonic_deadline_s(item.deadline_unix_s, now_s)
        for i, request_id in enumerate(self.request_ids):
            part = self._part_of(i)
            grammar = part.sampling.grammar
            compiled = None if grammar is None or grammars is None else grammars[grammar]
            yield Request(
                request_id,
                Lane.BE if slo is None else Lane.RT,
                item.token_ids + part.token_ids,
                sampling_params(part.sampling.for_choice(i % item.n), compiled),
                arrival_s=now_s,
                slo=slo,
                priority=item.priority,
                deadline_s=deadline_s,
            )

    def record(self, index: int, event: TokenEvent | FinishedEvent) -> None:
        """Record an event of output number `index`."""
        if isinstance(event, TokenEvent):
            self.token_ids[index].append(event.token_id)
            if event.logprobs is not None and (logprobs := position_logprobs(event)):
                self._logprobs[index].append(logprobs)
            return
        self._ends[index] = event
        if event.reason is FinishReason.ERROR:
            self._error = event.message or "the engine could not compute this item"

    def _part_of(self, index: int) -> Part:
        """The part of which this output is one."""
        return self._parts[index // self.item.n]

    @property
    def has_begun(self) -> bool:
        """Whether any output has a token."""
        return any(self.token_ids)

    @property
    def is_finished(self) -> bool:
        return None not in self._ends

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the prompt and all outputs."""
        return self._prompt_tokens + self.num_output_tokens

    @property
    def num_output_tokens(self) -> int:
        """Number of tokens of all outputs so far."""
        return sum(map(len, self.token_ids))

    @property
    def _prompt_tokens(self) -> int:
        """Number of tokens of all prompts, each counted once."""
        return sum(end.num_prompt_tokens for end in self._ends[:: self.item.n] if end is not None)

    @property
    def _cached_tokens(self) -> int:
        """How many of them an output found computed already."""
        cached = [0 if end is None else end.num_cached_tokens for end in self._ends]
        return sum(max(cached[i : i + self.item.n]) for i in range(0, len(cached), self.item.n))

    def unfinished(self) -> list[str]:
        """Ids of the requests that are still running."""
        return [r for r, end in zip(self.request_ids, self._ends, strict=True) if end is None]

    def result(self, engine_id: str, weights: str = "") -> ItemResult:
        """The result to push once all outputs are finished."""
        if self._error is not None:
            return self.failure(engine_id, "engine_error", self._error)
        choices = [self._choice(i, end) for i, end in enumerate(self._ends) if end is not None]
        return ItemResult(
            self.item.item_id,
            self.item.epoch,
            self.item.job_id,
            engine_id,
            choices,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            prompt_tail=self.item.token_ids[-PROMPT_TAIL_TOKENS:],
            memo=self.item.memo,
            weights=weights,
        )

    def _choice(self, index: int, end: FinishedEvent) -> Choice:
        part = self._part_of(index)
        prompt_tail: list[int] = []
        if self.item.parts and part.sampling.max_tokens:
            last = part.token_ids[-PROMPT_TAIL_TOKENS:]
            rest = PROMPT_TAIL_TOKENS - len(last)
            prompt_tail = (self.item.token_ids[-rest:] if rest else []) + last
        return Choice(
            self.token_ids[index],
            "stop" if end.reason is FinishReason.STOP else "length",
            self._logprobs[index] or None,
            scores=scores(end),
            prompt_logprobs=prompt_logprobs(end),
            embedding=embedding(end, part.sampling),
            prompt_tail=prompt_tail,
        )

    def failure(self, engine_id: str, code: str, message: str) -> ItemResult:
        """A result that reports an error."""
        return failed_item(self.item, engine_id, code, message)


def failed_item(item: ItemRequest, engine_id: str, code: str, message: str) -> ItemResult:
    """The result of an item that the engine has not computed."""
    return ItemResult(
        item.item_id,
        item.epoch,
        item.job_id,
        engine_id,
        error_code=code,
        error_message=message,
        memo=item.memo,
    )
