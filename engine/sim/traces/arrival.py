"""A request of a trace: when it arrives and how long its prompt and output are."""

from __future__ import annotations

from typing import NamedTuple

from engine.core.terms import SLO, Lane


class Arrival(NamedTuple):
    """A request that arrives `arrival_s` after the start.

    `output_tokens` is its true output length, which a scheduler must not see. Without an `slo`, the engine's default
    applies. The first `prefix_tokens` of its prompt equal those of all requests with the same `prefix`.
    """

    arrival_s: float
    lane: Lane
    prompt_tokens: int
    output_tokens: int
    slo: SLO | None = None
    priority: int = 0
    deadline_s: float | None = None
    prefix: str | None = None
    prefix_tokens: int = 0
