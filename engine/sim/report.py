"""The report of a replay: latencies, attainment of SLOs, throughput and preemptions."""

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
    """Percentiles in seconds, or None if there are no values."""

    p50_s: float | None
    p90_s: float | None
    p99_s: float | None

    @staticmethod
    def of(values: Sequence[float]) -> Latency:
        ordered = sorted(values)
        return Latency(*(percentile(ordered, p) for p in (50, 90, 99)))


@dataclass(frozen=True, slots=True)
class LaneReport:
    """The results of one lane.

    `attainment` is the share of RT requests that met both targets of their SLO, among those for which this is known. A
    request that was rejected, failed, or is unfinished with a late first token did not. Rates are those during the
    measured time. The slowdowns are what bulk added to the time of first and further tokens, as the engine counts it.
    """

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
    ttft_slowdown_p99: float | None
    tpot_slowdown_p99: float | None
    attainment: float | None
    requests_per_s: float
    output_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a replay.

    Rates are over `measured_s` of virtual time: from the end of the warm-up to the last arrival, or to the end if most
    of the time came after the last arrival. `tokens_per_s` counts prompt and output tokens that were served; those
    computed twice count once. During `stalled_s` the engine had work but planned none. `cost_model_error_ratio` is the
    median over the latest steps.
    """

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
        """The report as plain data that JSON can encode."""
        return {**asdict(self), "policy": self.policy.value}


def report_of(
    policy: Policy, scheduler: Scheduler, feed: Feed, metrics: EngineMetrics, now_s: float
) -> Report:
    """Make the report of a replay whose loop has ended."""
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
        preemptions=scheduler.allocator.num_preemptions,
        truncated_tokens=scheduler.allocator.num_truncated_tokens,
        restored_tokens=dict(scheduler.allocator.num_restored_tokens),
        stalled_s=feed.stalled_s,
        cost_model_error_ratio=scheduler.cost_model.median_error,
    )


def _lane_report(lane: Lane, outcomes: LaneOutcomes, first: Progress, until: Progress) -> LaneReport:
    measured_s = until.time_s - first.time_s
    counted = outcomes.num_counted if lane is Lane.RT else 0
    return LaneReport(
        num_arrived=outcomes.num_arrived,
        num_rejected=outcomes.num_rejected,
        num_succeeded=outcomes.num_succeeded,
        num_failed=outcomes.num_finished[FinishReason.ERROR],
        num_unfinished=outcomes.num_unfinished,
        prompt_tokens=outcomes.prompt_tokens,
        output_tokens=outcomes.output_tokens,
        ttft=Latency.of(outcomes.ttft_s),
        tpot=Latency.of(outcomes.tpot_s),
        e2e=Latency.of(outcomes.e2e_s),
        ttft_slowdown_p99=percentile(sorted(outcomes.ttft_slowdown), 99),
        tpot_slowdown_p99=percentile(sorted(outcomes.tpot_slowdown), 99),
        attainment=outcomes.num_met / counted if counted else None,
        requests_per_s=_per_s(until.num_finished[lane] - first.num_finished[lane], measured_s),
        output_tokens_per_s=_per_s(until.output_tokens[lane] - first.output_tokens[lane], measured_s),
    )


def _per_s(count: int, elapsed_s: float) -> float:
    return count / elapsed_s if elapsed_s > 0 else 0.0
