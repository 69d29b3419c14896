"""Idle time of the device between steps, and the time of a step by kernel."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.serving import Engine
from engine.core.plan import StepPlan, StepResult
from engine.core.terms import Policy
from engine.runner.base import ModelRunner, PendingStep, RunnerInfo

PROFILED_STEPS = 10
TOP_KERNELS = 12
SETTLED_STEPS = 5  # decode steps before those that are profiled
GRAPH_GAP_US = 5.0  # longest gap between two kernels of a graph, which no scheduling can shorten
COMPARED_STEPS = 20  # steps after those; their contexts are only insignificantly longer


class WatchedRunner:
    """Wraps a `ModelRunner` and records when each step was on the device, and the times of all kernels of a few steps.

    Events are recorded on the device, so a step that is launched while the previous one runs begins when that one ends.
    Waiting inside a step, for example for its own late launch, counts as busy in these times; the kernel times reveal
    it. A profiler makes steps longer but hardly affects their kernels, so the time that the kernels of the profiled
    steps cover is compared with the duration of the steps right after them (`idle_share_of_steps`).
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._is_cuda = runner.info.device != "cpu"
        # Start and end of steps that only decode; a new list after each interruption.
        self._runs: list[list[tuple[Any, Any]]] = [[]]
        self._num_decodes = 0
        kind = ProfilerActivity.CUDA if self._is_cuda else ProfilerActivity.CPU
        self._profiler = profile(activities=[kind])
        self._intervals_us: list[tuple[float, float]] = []
        self._after: list[tuple[Any, Any]] = []  # the steps after the profiled ones

    @property
    def info(self) -> RunnerInfo:
        return self._runner.info

    def launch(self, plan: StepPlan) -> PendingStep:
        is_decode = len(plan.rows) == len(plan.token_ids)
        self._num_decodes += is_decode
        if is_decode and self._num_decodes == SETTLED_STEPS:
            self._wait()
            self._profiler.start()
        elif is_decode and self._num_decodes == SETTLED_STEPS + PROFILED_STEPS:
            self._wait()
            self._stop_profiler()
        began = self._now()
        pending = self._runner.launch(plan)
        if is_decode:
            self._runs[-1].append((began, self._now()))
        else:
            self._runs.append([])
        return pending

    def execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()

    def close(self) -> None:
        self._runner.close()

    def figures(self) -> dict[str, float]:
        """Return the figures of the longest run of decode-only steps, and of the profiled steps."""
        self._wait()
        longest = max(self._runs, key=len)
        wall_s = self._between_s(longest[0][0], longest[-1][1])
        busy_s = sum(self._between_s(began, ended) for began, ended in longest)
        figures = {
            "steps": len(longest),
            "step_ms": wall_s / len(longest) * 1e3,
            "on_device_ms": busy_s / len(longest) * 1e3,
            "idle_share": max(0.0, 1 - busy_s / wall_s),
        }
        if self._intervals_us:
            all_us = max(end for _, end in self._intervals_us) - min(start for start, _ in self._intervals_us)
            figures["idle_share_between_kernels"] = 1 - union(self._intervals_us) / all_us
            ends = [ended for _, ended in self._after[:COMPARED_STEPS]]
            periods_s = [self._between_s(a, b) for a, b in pairwise(ends)]
            if periods_s:
                kernels_s = union(self._intervals_us, GRAPH_GAP_US) / PROFILED_STEPS / 1e6
                figures["kernels_ms"] = kernels_s * 1e3
                figures["idle_share_of_steps"] = max(0.0, 1 - kernels_s / statistics.median(periods_s))
        return figures

    def _stop_profiler(self) -> None:
        self._profiler.stop()
        kind = "CUDA" if self._is_cuda else "CPU"
        for event in self._profiler.events() or []:  # type: ignore[no-untyped-call]
            if event.device_type.name == kind:
                self._intervals_us.append((event.time_range.start, event.time_range.end))
        self._runs.append(self._after)

    def _wait(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize()

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _between_s(self, began: Any, ended: Any) -> float:
        return float(began.elapsed_time(ended) / 1e3 if self._is_cuda else ended - began)


def union(intervals: list[tuple[float, float]], bridged: float = 0.0) -> float:
    """Return the total length of the union of intervals, including gaps between them of up to `bridged`."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, reached))
        covered += start - reached if 0 < start - reached <= bridged else 0.0
        reached = max(reached, end)
    return covered


def idle_share(engine: Engine, num_rows: int, *, ahead: bool) -> dict[str, float]:
    """Measure the idle time while `num_rows` documents decode, with or without asynchronous scheduling."""
    watched = WatchedRunner(engine.runner)
    engine.serve(
        Policy.BROS, None, engine.scale.idle_load, num_documents=num_rows, ahead=ahead, runner=watched
    )
    return watched.figures()


def kernels_of(runner: ModelRunner, plan: StepPlan) -> dict[str, Any]:
    """Profile a step: time by kernel, longest first, in microseconds per step."""
    is_cuda = runner.info.device != "cpu"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if is_cuda else [ProfilerActivity.CPU]
    runner.execute(plan)
    with profile(activities=activities) as profiler:
        for _ in range(PROFILED_STEPS):
            runner.execute(plan)
    rows = []
    for event in profiler.key_averages():
        if is_cuda and event.device_type.name != "CUDA":
            continue
        spent_us = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        rows.append((spent_us / PROFILED_STEPS, event.count / PROFILED_STEPS, event.key[:100]))
    rows.sort(reverse=True)
    return {
        "total_us": sum(spent_us for spent_us, _, _ in rows),
        "launches": sum(count for _, count, _ in rows),
        "top": [{"us": us, "calls": calls, "name": name} for us, calls, name in rows[:TOP_KERNELS]],
    }
