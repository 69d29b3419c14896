"""What a replay showed, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.core.scheduler import Scheduler
from engine.core.terms import FinishReason, Lane, Policy
from engine.metrics import EngineMetrics
from engine.sim.feed import Feed, Progress
from engine.sim.outcomes import LaneOutcomes, percentile


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in seconds; None of nothing."""

    p50_s: float | None
    p90_s: float | None
    p99_s: float | None

    @staticmethod
    def of(values: Sequence[float]) -> Latency:
        ordered = sorted(values)
        return Latency(*(percentile(ordered, p) for p in (50, 90, 99)))


@dataclass(frozen=True, slots=True)
class LaneReport:
    """`attainment` is the share of RT requests that kept both promises, of those of which it is known: the refused, the
    failed, and the unfinished whose first token is late, did not. Rates are those while the load lasted."""

    num_arrived: int
    num_rejected: int
    num_succeeded: int
    num_failed: int
    num_unfinished: int
    prompt_tokens: int
    output_tokens: int
    ttft: Latency
    tpot: Latency
    e2e: Latency
    attainment: float | None
    requests_per_s: float
    output_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """`measured_s` is the virtual time that rates are over: from the end of the warm-up to the last arrival, or to the
    end where most of the time came after that. `tokens_per_s` are prompt and output tokens served; what was computed
    twice counts once. In `stalled_s` the engine had work and planned none. `cost_model_error_ratio` is the median of
    the latest steps."""

    policy: Policy
    virtual_s: float
    measured_s: float
    num_steps: int
    tokens_per_s: float
    rt: LaneReport
    be: LaneReport
    preemptions: int
    truncated_tokens: int
    restored_tokens: dict[str, int]
    stalled_s: float
    cost_model_error_ratio: float

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "policy": self.policy.value}


def report_of(
    policy: Policy, scheduler: Scheduler, feed: Feed, metrics: EngineMetrics, now_s: float
) -> Report:
    """After the loop has ended."""
    last = feed.end()
    first = feed.at_start or last
    until = feed.at_last_arrival or last
    if until.time_s - first.time_s < (last.time_s - first.time_s) / 2:
        until = last
    measured_s = until.time_s - first.time_s
    served = sum(until.served_tokens.values()) - sum(first.served_tokens.values())
    lanes = {lane: _lane_report(lane, feed.outcomes[lane], first, until) for lane in Lane}
    return Report(
        policy=policy,
        virtual_s=now_s,
        measured_s=measured_s,
        num_steps=metrics.num_steps,
        tokens_per_s=_per_s(served, measured_s),
        rt=lanes[Lane.RT],
        be=lanes[Lane.BE],
        preemptions=scheduler.memory.num_preemptions,
        truncated_tokens=scheduler.memory.num_truncated_tokens,
        restored_tokens=dict(scheduler.memory.num_restored_tokens),
        stalled_s=feed.stalled_s,
        cost_model_error_ratio=scheduler.cost_model.median_error,
    )


def _lane_report(lane: Lane, statistics: LaneOutcomes, first: Progress, until: Progress) -> LaneReport:
    measured_s = until.time_s - first.time_s
    counted = statistics.num_counted if lane is Lane.RT else 0
    return LaneReport(
        num_arrived=statistics.num_arrived,
        num_rejected=statistics.num_rejected,
        num_succeeded=statistics.num_succeeded,
        num_failed=statistics.num_finished[FinishReason.ERROR],
        num_unfinished=statistics.num_unfinished,
        prompt_tokens=statistics.prompt_tokens,
        output_tokens=statistics.output_tokens,
        ttft=Latency.of(statistics.ttft_s),
        tpot=Latency.of(statistics.tpot_s),
        e2e=Latency.of(statistics.e2e_s),
        attainment=statistics.num_met / counted if counted else None,
        requests_per_s=_per_s(until.num_finished[lane] - first.num_finished[lane], measured_s),
        output_tokens_per_s=_per_s(until.output_tokens[lane] - first.output_tokens[lane], measured_s),
    )


def _per_s(count: int, elapsed_s: float) -> float:
    return count / elapsed_s if elapsed_s > 0 else 0.0
