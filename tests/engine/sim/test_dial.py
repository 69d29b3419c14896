"""Chats with a slowdown: bulk takes at most that share of their time, and stops where it could only take more."""

from __future__ import annotations

import dataclasses
from array import array

import pytest

from engine.core.plan import StepPlan, StepResult
from engine.core.policy.pace import QUIET_S
from engine.core.terms import SLO, Lane
from engine.sim.device import StepCost
from engine.sim.feed import Limits
from engine.sim.outcomes import percentile
from engine.sim.replay import NOTHING, Load, Replay, Setup
from engine.sim.traces.arrival import Arrival
from tests.engine.sim.loads import fixed, load, setup

LIMITS = Limits(be_in_flight=96, duration_s=80.0, warmup_s=20.0)


def with_slowdown(slowdown: float | None, **cost: float) -> Setup:
    found = setup()
    device = dataclasses.replace(found.device, cost=dataclasses.replace(found.device.cost, **cost))
    return dataclasses.replace(found, device=device, slo=SLO(0.5, 0.1, slowdown))


def replayed(slowdown: float | None, *, has_be: bool = True, **cost: float) -> Replay:
    replay = Replay(with_slowdown(slowdown, **cost), load(LIMITS, rt_rate=2.0, has_be=has_be))
    replay.run()
    return replay


def p99(values: array[float]) -> float:
    found = percentile(sorted(values), 99)
    assert found is not None
    return found


def test_further_tokens_are_slower_by_the_dial_and_bulk_gets_more_the_further_it_is_turned() -> None:
    idle = replayed(None, has_be=False).feed.outcomes[Lane.RT]
    before = -1
    for slowdown in (0.2, 0.5, 1.0):
        outcomes = replayed(slowdown).feed.outcomes
        chats, bulk = outcomes[Lane.RT], outcomes[Lane.BE].prompt_tokens
        median, median_idle = percentile(sorted(chats.tpot_s), 50), percentile(sorted(idle.tpot_s), 50)
        assert median is not None and median_idle is not None
        assert 1.0 < median / median_idle <= 1 + slowdown + 0.1, "by the clock"
        assert p99(chats.tpot_slowdown) <= slowdown + 0.05, "as the engine counts it"
        assert p99(chats.ttft_slowdown) <= slowdown + 0.1
        assert bulk > before
        before = bulk


def test_bulk_fills_what_costs_chats_nothing() -> None:
    # Reading the weights takes as long as computing 300 tokens, and there is no other cost per row.
    cheap = {
        "step_s": 0.001,
        "weights_s": 0.03,
        "token_s": 0.0001,
        "row_s": 0.0,
        "context_s": 0.0,
        "pair_s": 0.0,
    }
    outcomes = replayed(0.05, **cheap).feed.outcomes
    assert p99(outcomes[Lane.RT].tpot_slowdown) <= 0.1
    alone = Replay(with_slowdown(None, **cheap), load(LIMITS))
    alone.run()
    assert outcomes[Lane.BE].output_tokens > 0.2 * alone.feed.outcomes[Lane.BE].output_tokens


def test_bulk_waits_for_a_silence_if_a_chat_could_bear_no_step_of_it_and_then_goes_on() -> None:
    cost = StepCost(step_s=0.01, token_s=0.001)
    engine = with_slowdown(0.05)
    engine = dataclasses.replace(engine, device=dataclasses.replace(engine.device, cost=cost), noise=0.0)
    chats = [Arrival(float(i), Lane.RT, 20, 5) for i in range(10)]
    end_s = 9.0 + QUIET_S + 20
    bulk = [Arrival(0.0, Lane.BE, 100, 50)] * 2000
    replay = Replay(engine, fixed([*chats, *bulk], Limits(96, duration_s=end_s)))
    tokens: dict[int, int] = {}
    steps = replay.runner.execute

    def execute(plan: StepPlan) -> StepResult:
        second = int(replay.clock.now_s)
        tokens[second] = tokens.get(second, 0) + plan.num_tokens
        return steps(plan)

    replay.runner.execute = execute  # type: ignore[method-assign]
    replay.run()
    waiting = [tokens.get(second, 0) for second in range(11, 9 + int(QUIET_S))]
    assert waiting == [0] * len(waiting), "the engine rests"
    assert min(tokens.get(second, 0) for second in range(11 + int(QUIET_S), int(end_s))) > 400


def test_a_chat_may_bring_its_own_slowdown_and_bulk_is_back_when_it_has_ended() -> None:
    chats = [Arrival(20.0 + i, Lane.RT, 40, 20, SLO(0.5, 0.1, 0.3) if i < 20 else None) for i in range(150)]
    limits = Limits(96, duration_s=170.0, warmup_s=5.0)
    replay = Replay(setup(), Load(lambda: iter(chats), load(limits).be, limits, 64))
    replay.run()
    slowdowns = list(replay.feed.outcomes[Lane.RT].tpot_slowdown)
    assert max(slowdowns[:20]) <= 0.35
    assert min(slowdowns[-20:]) > 1.0


def test_without_bulk_nothing_is_lost() -> None:
    chats = replayed(0.05, has_be=False).feed.outcomes[Lane.RT]
    assert max(chats.tpot_slowdown) == max(chats.ttft_slowdown) == pytest.approx(0.0)
    assert chats.num_met == chats.num_counted > 50


def test_a_load_of_bulk_alone_is_as_fast_as_without_the_dial() -> None:
    tokens = []
    for slowdown in (None, 0.05):
        replay = Replay(with_slowdown(slowdown), Load(NOTHING, load(LIMITS).be, LIMITS, 256))
        replay.run()
        tokens.append(replay.feed.outcomes[Lane.BE].prompt_tokens)
    assert tokens[0] == tokens[1]
