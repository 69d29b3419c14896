"""Who arrives when, and how long: synthetic traces, one request at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from engine.core.terms import SLO, Lane
from engine.sim.traces.workloads import Workload


class Arrival(NamedTuple):
    """A request that will arrive `arrival_s` after the start. `output_tokens` is its true length, which no scheduler
    may see. `slo` None means the engine's. The first `prefix_tokens` of its prompt are those of all that name the same
    `prefix`."""

    arrival_s: float
    lane: Lane
    prompt_tokens: int
    output_tokens: int
    slo: SLO | None = None
    priority: int = 0
    deadline_s: float | None = None
    prefix: str | None = None
    prefix_tokens: int = 0


def open_arrivals(
    workload: Workload, lane: Lane, rate: float, seed: int, every: int = 1
) -> Iterator[Arrival]:
    """Without end, `rate` a second. With `every` n, each n-th of them: the part of one of n engines that take turns,
    bursts and all. Lengths and times have random numbers of their own, so that the lengths are the same at any rate."""
    draw = _lengths(workload, lane, seed)
    times = workload.arrivals.times(random.Random(f"{seed} {lane.value} arrivals"), rate)
    for arrival_s in islice(times, every - 1, None, every):
        prompt_tokens, output_tokens = next(draw)
        yield Arrival(arrival_s, lane, prompt_tokens, output_tokens)


def backlog(workload: Workload, lane: Lane, seed: int) -> Iterator[Arrival]:
    """Without end, and all there from the start: how many are in hand at a time is for the one who takes them."""
    for prompt_tokens, output_tokens in _lengths(workload, lane, seed):
        yield Arrival(0.0, lane, prompt_tokens, output_tokens)


def _lengths(workload: Workload, lane: Lane, seed: int) -> Iterator[tuple[int, int]]:
    rng = random.Random(f"{seed} {lane.value} lengths")
    draw_prompt, draw_output = workload.prompt.draw, workload.output.draw
    while True:
        yield draw_prompt(rng), draw_output(rng)
