"""Fleet planning: searches, by simulation, for the number of engines that a load needs.

Two fleets are compared: engines that serve both lanes, and separate engines for each lane. One simulated engine
represents a fleet of n: it gets every n-th chat, with all bursts, and a backlog of bulk. Its attainment is that of the
fleet, and its bulk throughput is 1/n of the fleet's. The search assumes that more engines are never worse.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

from engine.sim.replay import Setup, replay
from engine.sim.report import Report
from engine.sim.scenario import find_workload, limits_for, synthetic_load

MAX_ENGINES = 4096
MEAN_DRAWS = 20_000


class NoFleet(Exception):
    """No number of engines meets the demand."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The load that a fleet has to serve.

    `be_tokens_per_s` counts output tokens. `attainment` is the share of chats that must meet both targets of their SLO.
    """

    rt: str
    rt_rate: float
    be: str
    be_tokens_per_s: float
    attainment: float
    duration_s: float
    warmup_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Trial:
    """The results of a fleet of `num_engines` in total; None for a lane that it does not serve."""

    num_engines: int
    attainment: float | None
    ttft_p99_s: float | None
    tpot_p99_s: float | None
    be_tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The smallest fleets: of `hybrid` engines for both lanes, and split into `rt_only` and `be_only` engines."""

    hybrid: Trial
    rt_only: Trial
    be_only: Trial

    @property
    def num_split(self) -> int:
        return self.rt_only.num_engines + self.be_only.num_engines


def mean_output_tokens(workload: str, seed: int = 0) -> float:
    """The mean output length of a workload, estimated from random draws."""
    draw, rng = find_workload(workload).output.draw, random.Random(seed)
    return sum(draw(rng) for _ in range(MEAN_DRAWS)) / MEAN_DRAWS


def plan_fleet(
    setup: Setup, demand: Demand, on_trial: Callable[[str, Trial], None] | None = None
) -> FleetPlan:
    """Find the smallest fleets. Calls `on_trial` after each trial. Raises NoFleet if no fleet meets the demand."""

    def trial(kind: str, num_engines: int) -> Trial:
        result = _trial(setup, demand, num_engines, has_rt=kind != "be only", has_be=kind != "rt only")
        if on_trial is not None:
            on_trial(kind, result)
        return result

    be_alone = trial("be only", 1)
    assert be_alone.be_tokens_per_s is not None
    if be_alone.be_tokens_per_s <= 0:
        raise NoFleet(
            f"an engine on {setup.device.name} finishes no bulk in {demand.duration_s:g} s; simulate a longer time"
        )
    num_be = max(1, -int(-demand.be_tokens_per_s // be_alone.be_tokens_per_s))
    be_only = dataclasses.replace(
        be_alone, num_engines=num_be, be_tokens_per_s=num_be * be_alone.be_tokens_per_s
    )

    def is_enough(found: Trial) -> bool:
        is_fast = found.attainment is None or found.attainment >= demand.attainment
        return is_fast and (found.be_tokens_per_s is None or found.be_tokens_per_s >= demand.be_tokens_per_s)

    rt_only = _smallest(1, lambda n: trial("rt only", n), is_enough, demand)
    # A hybrid fleet needs at least as many engines as the lane that needs more of them alone.
    hybrid = _smallest(max(num_be, rt_only.num_engines), lambda n: trial("hybrid", n), is_enough, demand)
    return FleetPlan(hybrid, rt_only, be_only)


def _smallest(
    least: int, trial: Callable[[int], Trial], is_enough: Callable[[Trial], bool], demand: Demand
) -> Trial:
    """Return the trial of the smallest sufficient fleet with at least `least` engines."""
    too_few, step, enough = least - 1, 1, trial(least)
    while not is_enough(enough):
        # A chat that is late even though no other runs beside it would be late in any fleet.
        if enough.attainment is None or enough.num_engines * 2 > MAX_ENGINES or _is_lonely(enough, demand):
            raise NoFleet(
                f"with {enough.num_engines} engines, {enough.attainment or 0:.1%} of the chats meet their SLO, and "
                f"more would not reach {demand.attainment:.1%}; allow a longer TTFT or TPOT, or use a faster device"
            )
        too_few = enough.num_engines
        enough = trial(too_few + step)
        step *= 2
    while enough.num_engines - too_few > 1:
        middle = trial((too_few + enough.num_engines) // 2)
        if is_enough(middle):
            enough = middle
        else:
            too_few = middle.num_engines
    return enough


def _is_lonely(trial: Trial, demand: Demand) -> bool:
    """Whether an engine of this fleet gets so few chats that they hardly affect each other."""
    return demand.rt_rate / trial.num_engines * demand.duration_s < 10


def _trial(setup: Setup, demand: Demand, num_engines: int, *, has_rt: bool, has_be: bool) -> Trial:
    limits = limits_for(setup, duration_s=demand.warmup_s + demand.duration_s, warmup_s=demand.warmup_s)
    load = synthetic_load(
        limits,
        rt=demand.rt if has_rt else None,
        rt_rate=demand.rt_rate,
        be=demand.be if has_be else None,
        be_rate=None,
        seed=demand.seed,
        every=num_engines,
    )
    report: Report = replay(setup, load)
    return Trial(
        num_engines=num_engines,
        attainment=report.rt.attainment if has_rt else None,
        ttft_p99_s=report.rt.ttft.p99_s,
        tpot_p99_s=report.rt.tpot.p99_s,
        be_tokens_per_s=num_engines * report.be.output_tokens_per_s if has_be else None,
    )
