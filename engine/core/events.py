"""What a request's owner hears at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.core.request import Request
from engine.core.terms import FinishedEvent, FinishReason, Lane, TokenEvent


def finished_event(
    request: Request, reason: FinishReason, now_s: float, message: str | None = None
) -> FinishedEvent:
    """The event, with the times the request took."""
    arrival_s, first_s = request.arrival_s, request.first_token_s
    num_output_tokens = request.num_known_tokens - request.num_prompt_tokens
    num_later = num_output_tokens - 1
    ttft_s = None if first_s is None else first_s - arrival_s
    tpot_s = (now_s - first_s) / num_later if first_s is not None and num_later > 0 else None
    slo_met = None
    if request.lane is Lane.RT and reason in (FinishReason.STOP, FinishReason.LENGTH):
        slo_met = request.has_first_token_in_time and (tpot_s or 0.0) <= request.slo.tpot_s
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
    )


def finished_among(events: Sequence[object]) -> Iterator[FinishedEvent]:
    """The ends among a step's events, the last first. They come after the tokens, of which there are many more."""
    for event in reversed(events):
        if type(event) is TokenEvent:
            return
        if type(event) is FinishedEvent:
            yield event
