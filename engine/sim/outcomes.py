"""Outcomes of the requests of a simulation, in a few bytes per request."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

from engine.core.events import FinishedEvent
from engine.core.terms import FinishReason

NUM_BUCKETS = 256


class Timeline:
    """Sums over time in at most `NUM_BUCKETS` buckets. When those are full, neighbors are merged in pairs."""

    def __init__(self, bucket_s: float = 0.25) -> None:
        self.bucket_s = bucket_s
        self.sums = array("d")

    def add(self, time_s: float, value: float) -> None:
        """Add `value` at `time_s`."""
        while time_s >= NUM_BUCKETS * self.bucket_s:
            odd, even = self.sums[::2], self.sums[1::2]
            even.extend([0.0] * (len(odd) - len(even)))
            self.sums = array("d", [a + b for a, b in zip(odd, even, strict=True)])
            self.bucket_s *= 2
        i = int(time_s / self.bucket_s)
        if i >= len(self.sums):
            self.sums.extend([0.0] * (i + 1 - len(self.sums)))
        self.sums[i] += value

    def rates(self, at_most: int = NUM_BUCKETS) -> tuple[list[float], list[float]]:
        """Midpoints in seconds, and sums per second, of at most `at_most` equal pieces. A remainder is left out."""
        size = max(1, -(-len(self.sums) // at_most))
        starts = range(0, len(self.sums) - size + 1, size)
        piece_s = size * self.bucket_s
        return [i * self.bucket_s + piece_s / 2 for i in starts], [
            sum(self.sums[i : i + size]) / piece_s for i in starts
        ]


class LaneOutcomes:
    """The outcomes of the requests of one lane.

    Latencies are in seconds, with one entry per counted request that got so far. Token counts include all requests.
    """

    def __init__(self) -> None:
        self.num_arrived = 0
        self.num_rejected = 0
        self.num_unfinished = 0  # at the end of the load
        self.num_finished = dict.fromkeys(FinishReason, 0)
        self.num_counted = 0  # for attainment: finished, rejected, or running and already late
        self.num_met = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.ttft_s = array("d")
        self.tpot_s = array("d")
        self.e2e_s = array("d")
        self.ttft_slowdown = array("d")
        self.tpot_slowdown = array("d")
        self.timeline = Timeline()  # of output tokens, by the time at which their request finished

    @property
    def num_succeeded(self) -> int:
        return self.num_finished[FinishReason.STOP] + self.num_finished[FinishReason.LENGTH]

    def record_rejected(self, *, is_counted: bool) -> None:
        """Record a request that the server rejected."""
        self.num_rejected += 1
        self.num_counted += is_counted

    def record_unfinished(self, *, is_late: bool) -> None:
        """Record a request that still runs at the end; `is_late` if it is counted and has missed its TTFT."""
        self.num_unfinished += 1
        self.num_counted += is_late

    def record_finished(self, event: FinishedEvent, now_s: float, *, is_counted: bool) -> None:
        """Record a request that finished."""
        self.num_finished[event.reason] += 1
        self.prompt_tokens += event.num_prompt_tokens
        self.output_tokens += event.num_output_tokens
        self.timeline.add(now_s, event.num_output_tokens)
        if not is_counted:
            return
        self.num_counted += 1
        self.num_met += event.slo_met is True
        self.e2e_s.append(event.e2e_s)
        if event.ttft_s is not None:
            self.ttft_s.append(event.ttft_s)
        if event.tpot_s is not None:
            self.tpot_s.append(event.tpot_s)
        if event.ttft_slowdown is not None:
            self.ttft_slowdown.append(event.ttft_slowdown)
        if event.tpot_slowdown is not None:
            self.tpot_slowdown.append(event.tpot_slowdown)


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile of sorted values; None if there are none."""
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1] if ordered else None
