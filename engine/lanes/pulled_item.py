"""An item that the engine pulled: its requests to the core, the outputs as they grow, and the result."""

from __future__ import annotations

import time
from collections.abc import Iterator

from engine.core.events import FinishedEvent, TokenEvent
from engine.core.request import Request
from engine.core.terms import FinishReason, Lane
from engine.lanes.translation import monotonic_deadline_s, position_logprobs, sampling_params
from engine.wire.protocol import PROMPT_TAIL_TOKENS, Choice, ItemRequest, ItemResult, PositionLogprobs


class PulledItem:
    """The item of one stream entry, computed as n requests of the BE lane."""

    def __init__(self, entry_id: bytes, item: ItemRequest) -> None:
        self.entry_id = entry_id
        self.item = item
        self.request_ids = [f"b{item.item_id}:{entry_id.decode()}.{i}" for i in range(item.n)]
        self._token_ids: list[list[int]] = [[] for _ in range(item.n)]
        self._logprobs: list[list[PositionLogprobs]] = [[] for _ in range(item.n)]
        self._reasons: list[FinishReason | None] = [None] * item.n
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._error: str | None = None

    def requests(self) -> Iterator[Request]:
        """Yield one request per output. If the item has a seed, output i uses the seed plus i."""
        item = self.item
        now_s = time.monotonic()
        deadline_s = monotonic_deadline_s(item.deadline_unix_s, now_s)
        for i, request_id in enumerate(self.request_ids):
            yield Request(
                request_id,
                Lane.BE,
                item.token_ids,
                sampling_params(item.sampling.for_choice(i)),
                arrival_s=now_s,
                priority=item.priority,
                deadline_s=deadline_s,
            )

    def record(self, index: int, event: TokenEvent | FinishedEvent) -> None:
        """Record an event of output number `index`."""
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
    def has_begun(self) -> bool:
        """Whether any output has a token."""
        return any(self._token_ids)

    @property
    def is_finished(self) -> bool:
        return None not in self._reasons

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the prompt and all outputs."""
        return self._prompt_tokens + sum(map(len, self._token_ids))

    def unfinished(self) -> list[str]:
        """Ids of the requests that are still running."""
        return [r for r, reason in zip(self.request_ids, self._reasons, strict=True) if reason is None]

    def result(self, engine_id: str) -> ItemResult:
        """The result to push once all outputs are finished."""
        if self._error is not None:
            return self.failure(engine_id, "engine_error", self._error)
        choices = [
            Choice(ids, "stop" if reason is FinishReason.STOP else "length", logprobs or None)
            for ids, logprobs, reason in zip(self._token_ids, self._logprobs, self._reasons, strict=True)
        ]
        return ItemResult(
            self.item.item_id,
            self.item.epoch,
            self.item.job_id,
            engine_id,
            choices,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            prompt_tail=self.item.token_ids[-PROMPT_TAIL_TOKENS:],
        )

    def failure(self, engine_id: str, code: str, message: str) -> ItemResult:
        """A result that reports an error."""
        return failed_item(self.item, engine_id, code, message)


def failed_item(item: ItemRequest, engine_id: str, code: str, message: str) -> ItemResult:
    """The result of an item that the engine has not computed."""
    return ItemResult(
        item.item_id, item.epoch, item.job_id, engine_id, error_code=code, error_message=message
    )
