"""A work item on its way through the engine: requests in the core's words, outputs as they grow, the result."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from engine.core.request import Request
from engine.core.terms import FinishedEvent, FinishReason, Lane, TokenEvent
from engine.lanes.admission import monotonic_deadline_s
from engine.lanes.translation import position_logprobs, sampling_params
from engine.wire.protocol import Choice, PositionLogprobs, WorkItem, WorkResult


class Delivery:
    """One stream entry's work item, as n requests of the BE lane."""

    def __init__(self, entry_id: bytes, item: WorkItem) -> None:
        self.entry_id = entry_id
        self.item = item
        self.request_ids = [f"b{entry_id.decode()}.{i}" for i in range(item.n)]
        self._token_ids: list[list[int]] = [[] for _ in range(item.n)]
        self._logprobs: list[list[PositionLogprobs]] = [[] for _ in range(item.n)]
        self._reasons: list[FinishReason | None] = [None] * item.n
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._error: str | None = None

    def requests(self) -> Iterator[Request]:
        """One request an output; seeded ones with seeds that follow on each other."""
        item = self.item
        now_s = time.monotonic()
        deadline_s = monotonic_deadline_s(item.deadline_unix_s, now_s)
        for i, request_id in enumerate(self.request_ids):
            sampling = item.sampling
            if i and sampling.seed is not None:
                sampling = msgspec.structs.replace(sampling, seed=sampling.seed + i)
            yield Request(
                request_id,
                Lane.BE,
                item.token_ids,
                sampling_params(sampling),
                arrival_s=now_s,
                priority=item.priority,
                deadline_s=deadline_s,
            )

    def hear(self, index: int, event: TokenEvent | FinishedEvent) -> None:
        """Take in what happened to output number `index`."""
        if isinstance(event, TokenEvent):
            self._token_ids[index].append(event.token_id)
            logprobs = position_logprobs(event)
            if logprobs:
                self._logprobs[index].append(logprobs)
            return
        self._reasons[index] = event.reason
        self._prompt_tokens = event.num_prompt_tokens
        self._cached_tokens = max(self._cached_tokens, event.num_cached_tokens)
        if event.reason is FinishReason.ERROR:
            self._error = event.message or "the engine could not compute this item"

    @property
    def is_over(self) -> bool:
        return None not in self._reasons

    def unfinished(self) -> list[str]:
        """Ids of the requests that still run."""
        return [r for r, reason in zip(self.request_ids, self._reasons, strict=True) if reason is None]

    def result(self, engine_id: str) -> WorkResult:
        """What to record, once it is over."""
        if self._error is not None:
            return self.failure(engine_id, "invalid_request", self._error)
        choices = [
            Choice(ids, "stop" if reason is FinishReason.STOP else "length", logprobs or None)
            for ids, logprobs, reason in zip(self._token_ids, self._logprobs, self._reasons, strict=True)
        ]
        return WorkResult(
            self.item.item_id,
            self.item.epoch,
            self.item.job_id,
            engine_id,
            choices,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
        )

    def failure(self, engine_id: str, code: str, message: str) -> WorkResult:
        """An error instead of a result."""
        item = self.item
        return WorkResult(
            item.item_id, item.epoch, item.job_id, engine_id, error_code=code, error_message=message
        )
