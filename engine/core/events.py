"""The events that a step produces: a request got a token, or it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.core.request import Request
from engine.core.terms import FinishReason, Lane, PromptResult, TokenLogprobs


class TokenEvent(NamedTuple):
    """A request got one more output token. A tuple, because there is one per token."""

    request_id: str
    token_id: int
    logprobs: TokenLogprobs | None


class FinishedEvent(NamedTuple):
    """A request ended; its KV and its row are free. `message` says what was wrong if the reason is ERROR. `prompt` is
    what the request asked about its prompt.

    Times are in seconds since arrival, except `tpot_s`, the mean time per output token after the first. They are None
    if the request did not get that far. `slo_met` says whether an RT request met both parts of its SLO; it is None for
    BE and after an abort. The slowdowns are by how much bulk made the first and the further tokens of an RT request
    slower, by the cost model.
    """

    request_id: str
    lane: Lane
    reason: FinishReason
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    e2e_s: float
    queue_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    slo_met: bool | None = None
    message: str | None = None
    prompt: PromptResult | None = None
    ttft_slowdown: float | None = None
    tpot_slowdown: float | None = None


Event = TokenEvent | FinishedEvent


def finished_event(
    request: Request, reason: FinishReason, now_s: float, message: str | None = None
) -> FinishedEvent:
    """The event of a request that ends at `now_s`, with the times it took."""
    arrival_s, first_s = request.arrival_s, request.first_token_s
    num_output_tokens = request.num_known_tokens - request.num_prompt_tokens
    num_later = num_output_tokens - 1
    ttft_s = None if first_s is None else first_s - arrival_s
    tpot_s = (now_s - first_s) / num_later if first_s is not None and num_later > 0 else None
    slo_met = None
    if request.lane is Lane.RT and reason in (FinishReason.STOP, FinishReason.LENGTH):
        slowdown = request.slo.slowdown
        if slowdown is None:
            slo_met = request.has_first_token_in_time and (tpot_s or 0.0) <= request.slo.tpot_s
        else:
            slo_met = max(request.ttft_slowdown or 0.0, request.tpot_slowdown or 0.0) <= slowdown
    return FinishedEvent(
        request_id=request.request_id,
        lane=request.lane,
        reason=reason,
        num_prompt_tokens=request.num_prompt_tokens,
        num_output_tokens=num_output_tokens,
        num_cached_tokens=request.num_cached_tokens,
        e2e_s=now_s - arrival_s,
        queue_s=None if request.first_scheduled_s is None else request.first_scheduled_s - arrival_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        slo_met=slo_met,
        message=message,
        prompt=None if request.reading is None or reason is FinishReason.ERROR else request.reading.result(),
        ttft_slowdown=request.ttft_slowdown,
        tpot_slowdown=request.tpot_slowdown,
    )


def finished_among(events: Sequence[object]) -> Iterator[FinishedEvent]:
    """The finished events of a step, the last one first. They follow the token events, which are many more."""
    for event in reversed(events):
        if type(event) is TokenEvent:
            return
        if type(event) is FinishedEvent:
            yield event
