"""Conversions between the wire's types and the core's, which share names and meanings but no code."""

from __future__ import annotations

import time

import msgspec

from engine.core.events import TokenEvent
from engine.core.terms import SLO, Grammar, SamplingParams
from engine.wire.protocol import PositionLogprobs, Sampling, Slo


def core_slo(slo: Slo) -> SLO:
    """Convert an SLO to the core's type."""
    return SLO(slo.ttft_s, slo.tpot_s)


def sampling_params(sampling: Sampling) -> SamplingParams:
    """Convert sampling parameters to the core's type; the fields and defaults are the same."""
    values = msgspec.structs.asdict(sampling)
    if sampling.grammar is not None:
        values["grammar"] = Grammar(sampling.grammar.kind, sampling.grammar.text)
    return SamplingParams(**values)


def position_logprobs(event: TokenEvent) -> PositionLogprobs | None:
    """Convert the log-probabilities of an event to the wire's type; None if it has none."""
    if event.logprobs is None:
        return None
    return PositionLogprobs(event.logprobs.logprob, event.logprobs.top)


def monotonic_deadline_s(deadline_unix_s: float | None, now_s: float) -> float | None:
    """Convert a deadline from Unix time to the monotonic clock, which currently shows `now_s`."""
    return None if deadline_unix_s is None else deadline_unix_s - time.time() + now_s
