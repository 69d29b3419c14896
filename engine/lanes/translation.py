"""The wire's words in the core's, and back: the two share names and meanings, not code."""

from __future__ import annotations

import msgspec

from engine.core.terms import SamplingParams, TokenEvent
from engine.wire.protocol import PositionLogprobs, Sampling


def sampling_params(sampling: Sampling) -> SamplingParams:
    """The wire's sampling parameters for the core; fields and defaults are the same."""
    return SamplingParams(**msgspec.structs.asdict(sampling))


def position_logprobs(event: TokenEvent) -> PositionLogprobs | None:
    """An event's log-probabilities for the wire."""
    if event.logprobs is None:
        return None
    return PositionLogprobs(event.logprobs.logprob, event.logprobs.top)
