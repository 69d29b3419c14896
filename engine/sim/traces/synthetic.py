"""Synthetic traces: requests drawn one at a time from the distributions of a workload."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from engine.core.terms import Lane
from engine.sim.traces.arrival import Arrival
from engine.sim.traces.workloads import Workload


def open_arrivals(
    workload: Workload, lane: Lane, rate: float, seed: int, every: int = 1
) -> Iterator[Arrival]:
    """Yield requests without end, `rate` per second on average.

    If `every` is n, yield only every n-th of them: the share of one engine of n that get the requests in rotation, with
    all their bursts. Lengths and times use separate random numbers, so that the lengths are the same at any rate.
    """
    draw = _lengths(workload, lane, seed)
    times = workload.arrivals.times(random.Random(f"{seed} {lane.value} arrivals"), rate)
    for arrival_s in islice(times, every - 1, None, every):
        prompt_tokens, output_tokens = next(draw)
        yield Arrival(arrival_s, lane, prompt_tokens, output_tokens)


def backlog(workload: Workload, lane: Lane, seed: int) -> Iterator[Arrival]:
    """Yield requests without end that have all arrived at the start; the consumer limits how many are in flight."""
    for prompt_tokens, output_tokens in _lengths(workload, lane, seed):
        yield Arrival(0.0, lane, prompt_tokens, output_tokens)


def _lengths(workload: Workload, lane: Lane, seed: int) -> Iterator[tuple[int, int]]:
    rng = random.Random(f"{seed} {lane.value} lengths")
    draw_prompt, draw_output = workload.prompt.draw, workload.output.draw
    while True:
        yield draw_prompt(rng), draw_output(rng)
