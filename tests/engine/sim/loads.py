"""Small engines and loads for simulations."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from engine.core.plan import StepPlan, StepResult
from engine.core.terms import SLO, Lane, Policy
from engine.runner.base import DoneStep
from engine.sim.device import DEVICES
from engine.sim.feed import Limits
from engine.sim.replay import NOTHING, Load, Replay, Setup
from engine.sim.traces.arrival import Arrival
from engine.sim.traces.synthetic import backlog, open_arrivals
from engine.sim.traces.workloads import WORKLOADS

MOST_OUTPUT_TOKENS = 256


def setup(policy: Policy = Policy.BROS, *, seed: int = 0, **device: int) -> Setup:
    return Setup(
        dataclasses.replace(DEVICES["cpu-mini"], **device),  # type: ignore[arg-type]
        policy,
        SLO(ttft_s=0.5, tpot_s=0.1),
        seed=seed,
    )


def load(limits: Limits, *, rt_rate: float = 0.0, has_be: bool = True, seed: int = 0) -> Load:
    """Chats at `rt_rate` per second, and an endless backlog of items."""

    def rt() -> Iterator[Arrival]:
        return open_arrivals(WORKLOADS["cpu-mini-chat"], Lane.RT, rt_rate, seed)

    def be() -> Iterator[Arrival]:
        return backlog(WORKLOADS["cpu-mini"], Lane.BE, seed)

    return Load(rt if rt_rate else NOTHING, be if has_be else NOTHING, limits, MOST_OUTPUT_TOKENS)


def fixed(arrivals: list[Arrival], limits: Limits) -> Load:
    """A load of exactly these requests."""
    return Load(
        lambda: iter([a for a in arrivals if a.lane is Lane.RT]),
        lambda: iter([a for a in arrivals if a.lane is Lane.BE]),
        limits,
        max(a.output_tokens for a in arrivals),
    )


class CountedRunner:
    """Wraps the runner of a replay and counts the computed tokens per lane and window of virtual time."""

    def __init__(self, replay: Replay, window_s: float) -> None:
        self.tokens: dict[Lane, Counter[int]] = {lane: Counter() for lane in Lane}
        self.info = replay.runner.info
        self._replay = replay
        self._window_s = window_s
        self._lane_of_row: dict[int, Lane] = {}
        replay.loop.runner = self

    def launch(self, plan: StepPlan) -> DoneStep:
        return DoneStep(self.execute(plan))

    def execute(self, plan: StepPlan) -> StepResult:
        result = self._replay.runner.execute(plan)
        for start in plan.row_starts:
            self._lane_of_row[start.row] = Lane(start.request_id.partition("-")[0])
        window = int(self._replay.clock.now_s / self._window_s)
        for row, count in zip(plan.rows, plan.counts, strict=True):
            self.tokens[self._lane_of_row[row]][window] += count
        return result

    def close(self) -> None:
        self._replay.runner.close()
