"""Counters of an engine, in total and per lane, and the snapshot of them as one dictionary."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from engine.core.events import FinishedEvent, finished_among
from engine.core.kv.cache import KVCacheManager
from engine.core.kv.view import occupancy
from engine.core.plan import StepPlan
from engine.core.scheduler import Scheduler
from engine.core.terms import Lane
from engine.grammars.contract import GrammarCounts

# Upper bounds in seconds, without that of the last bucket. They range from a step on an idle engine to a long item.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
RECENT_REQUESTS = 512
MEMORY_CELLS = 256
MEMORY_AGE_S = 1.0  # a map of the memory is reused until it is this old


class Histogram:
    """Counts per bucket and the sum, as Prometheus expects them, and percentiles of the latest observations."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT_REQUESTS)

    def observe(self, value_s: float) -> None:
        self.counts[bisect_left(BUCKETS_S, value_s)] += 1
        self.total_s += value_s
        self._recent.append(value_s)

    def snapshot(self) -> dict[str, Any]:
        ordered = sorted(self._recent)
        percentiles = {
            f"p{p}_s": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] if ordered else None
            for p in (50, 90, 99)
        }
        return {
            "bounds_s": list(BUCKETS_S),
            "counts": list(self.counts),
            "sum_s": self.total_s,
            **percentiles,
        }


class Attainment:
    """How many requests met their SLO: in total, and as a share of the latest."""

    def __init__(self) -> None:
        self.num_met = 0
        self.num_missed = 0
        self._recent: deque[bool] = deque(maxlen=RECENT_REQUESTS)

    def observe(self, met: bool) -> None:
        if met:
            self.num_met += 1
        else:
            self.num_missed += 1
        self._recent.append(met)

    def snapshot(self) -> dict[str, Any]:
        ratio = self._recent.count(True) / len(self._recent) if self._recent else None
        return {"met": self.num_met, "missed": self.num_missed, "recent_ratio": ratio}


class LaneMetrics:
    """Counters of the finished requests of one lane."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.finished: dict[str, int] = {}
        self.slo = Attainment()
        self.queue = Histogram()
        self.ttft = Histogram()
        self.tpot = Histogram()
        self.e2e = Histogram()
        # By how much bulk made the latest chats slower, by the cost model.
        self.slowdowns: dict[str, deque[float]] = {
            name: deque(maxlen=RECENT_REQUESTS) for name in ("ttft", "tpot")
        }

    def observe(self, event: FinishedEvent) -> None:
        self.prompt_tokens += event.num_prompt_tokens
        self.cached_tokens += event.num_cached_tokens
        self.output_tokens += event.num_output_tokens
        self.finished[event.reason.value] = self.finished.get(event.reason.value, 0) + 1
        self.e2e.observe(event.e2e_s)
        if event.slo_met is not None:
            self.slo.observe(event.slo_met)
        for histogram, value_s in (
            (self.queue, event.queue_s),
            (self.ttft, event.ttft_s),
            (self.tpot, event.tpot_s),
        ):
            if value_s is not None:
                histogram.observe(value_s)
        for name, slowdown in (("ttft", event.ttft_slowdown), ("tpot", event.tpot_slowdown)):
            if slowdown is not None:
                self.slowdowns[name].append(slowdown)

    def snapshot(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "finished": dict(self.finished),
            "slo": self.slo.snapshot(),
            "queue": self.queue.snapshot(),
            "ttft": self.ttft.snapshot(),
            "tpot": self.tpot.snapshot(),
            "e2e": self.e2e.snapshot(),
            "slowdown": {name: _p50_p99(values) for name, values in self.slowdowns.items()},
        }


def _p50_p99(values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {f"p{p}": ordered[len(ordered) * p // 100] if ordered else None for p in (50, 99)}


class EngineMetrics:
    """Counters of one engine since it started."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_step_failures = 0  # requests that failed in a step while the others went on
        self.num_graph_failures = 0  # CUDA graphs that could not be replayed
        self.computed_tokens = 0
        self.step_time = Histogram()
        self.lanes = {lane: LaneMetrics() for lane in Lane}
        self._memory: dict[str, Any] = {}
        self._memory_at_s = float("-inf")

    def observe_step(self, plan: StepPlan, elapsed_s: float) -> None:
        self.num_steps += 1
        self.computed_tokens += plan.num_tokens
        self.step_time.observe(elapsed_s)

    def observe_events(self, events: Sequence[object]) -> None:
        """Count the finished requests among the events that the loop sends."""
        for event in finished_among(events):
            self.lanes[event.lane].observe(event)

    def memory(self, kv: KVCacheManager, now_s: float) -> dict[str, Any]:
        """A map of the KV memory, at most a second old: `Occupancy` as a dictionary, and the size of a block."""
        if now_s - self._memory_at_s >= MEMORY_AGE_S:
            self._memory_at_s = now_s
            self._memory = {"block_size": kv.block_size, **asdict(occupancy(kv, MEMORY_CELLS))}
        return self._memory

    def snapshot(self, scheduler: Scheduler, grammars: GrammarCounts) -> dict[str, Any]:
        """All counters and gauges, as data that msgpack and JSON can encode. Times are in seconds."""
        lanes: dict[str, Any] = {}
        used_blocks = scheduler.kv.usage()
        unfinished = dict.fromkeys(Lane, 0)  # output tokens of requests that have not finished
        for request in scheduler.backlog.by_row:
            if request is not None:
                unfinished[request.lane] += request.num_output_tokens
        for lane, metrics in self.lanes.items():
            running, waiting = scheduler.num_requests(lane)
            lanes[lane.value] = {
                "running": running,
                "waiting": waiting,
                "kv_blocks": used_blocks[lane],
                "generated_tokens": metrics.output_tokens + unfinished[lane],
                "planned_tokens": scheduler.num_planned_tokens[lane],
                **metrics.snapshot(),
            }
        return {
            "steps": self.num_steps,
            "computed_tokens": self.computed_tokens,
            "step_failures": self.num_step_failures,
            "graph_failures": self.num_graph_failures,
            "step_time": self.step_time.snapshot(),
            "kv_blocks": scheduler.kv.num_blocks,
            "kv_free_blocks": scheduler.kv.num_free_blocks,
            "host_slots": scheduler.kv.host.num_slots,
            "host_slots_used": scheduler.kv.host.num_used_slots,
            "preemptions": scheduler.allocator.num_preemptions,
            "truncated_tokens": scheduler.allocator.num_truncated_tokens,
            "saved_tokens": scheduler.kv.num_saved_tokens,
            "restored_tokens": dict(scheduler.allocator.num_restored_tokens),
            "prefix_queried_tokens": scheduler.kv.prefix.num_queried_tokens,
            "prefix_hit_tokens": scheduler.kv.prefix.num_hit_tokens,
            "step_cap_s": scheduler.pace.cap_s,
            "step_limit_s": scheduler.pace.limit_s,
            "cost_model_error_ratio": scheduler.cost_model.median_error,
            "grammars_compiled": grammars.num_compiled,
            "grammars_cached": grammars.num_cached,
            "grammars_failed": grammars.num_failed,
            "grammar_compile_s": grammars.compile_s,
            "masks": grammars.num_masks,
            "mask_s": grammars.mask_s,
            "forced_tokens": grammars.num_forced_tokens,
            "lanes": lanes,
        }
