"""Fleet planning: the smallest fleet that meets the demand, hybrid and split."""

from __future__ import annotations

import dataclasses

import pytest

from engine.core.terms import SLO
from engine.sim import fleet
from engine.sim.fleet import Demand, NoFleet, mean_output_tokens, plan_fleet
from engine.sim.scenario import make_setup

DEMAND = Demand(
    rt="cpu-mini-chat",
    rt_rate=4.0,
    be="cpu-mini",
    be_tokens_per_s=400.0,
    attainment=0.95,
    duration_s=30.0,
    warmup_s=20.0,
    seed=0,
)


def test_the_plan_is_the_smallest_that_is_enough():
    setup = make_setup("cpu-mini", ttft_s=0.5, tpot_s=0.1)
    trials: list[tuple[str, int]] = []
    found = plan_fleet(setup, DEMAND, lambda kind, trial: trials.append((kind, trial.num_engines)))
    for trial in (found.hybrid, found.rt_only):
        assert trial.attainment is not None and trial.attainment >= 0.95
    for trial in (found.hybrid, found.be_only):
        assert trial.be_tokens_per_s is not None and trial.be_tokens_per_s >= 400.0
    assert found.hybrid.num_engines <= found.num_split
    assert len(set(trials)) == len(trials), "no fleet is tried twice"
    smaller = fleet._trial(setup, DEMAND, found.hybrid.num_engines - 1, has_rt=True, has_be=True)
    assert smaller.attainment < 0.95 or smaller.be_tokens_per_s < 400.0


def test_an_slo_that_no_fleet_can_meet():
    setup = dataclasses.replace(make_setup("cpu-mini", ttft_s=0.5, tpot_s=0.1), slo=SLO(0.001, 0.1))
    with pytest.raises(NoFleet, match="allow a longer TTFT or TPOT"):
        plan_fleet(setup, DEMAND)


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 13, 100])
def test_the_search_finds_what_is_needed(least, needed):
    def trial(count):
        tried.append(count)
        return fleet.Trial(count, attainment=0.5 + 0.5 * (count >= needed), ttft_p99_s=None, tpot_p99_s=None,
                           be_tokens_per_s=None)  # fmt: skip

    tried: list[int] = []
    demand = dataclasses.replace(DEMAND, rt_rate=1e6)
    found = fleet._smallest(least, trial, lambda t: t.attainment >= 0.95, demand)
    assert found.num_engines == max(least, needed)
    assert len(tried) <= 16
    assert len(set(tried)) == len(tried)


def test_mean_outputs():
    assert mean_output_tokens("cpu-mini") == pytest.approx(48, rel=0.03)
