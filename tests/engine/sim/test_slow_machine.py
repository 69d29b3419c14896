"""On a slow machine, bulk gets all that is left of it, and chats keep their SLOs as long as that is possible."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest

from engine.core.terms import Lane, Policy
from engine.sim.device import NEVER, Slowdown, parse_device
from engine.sim.feed import Limits
from engine.sim.replay import Replay, Setup
from engine.sim.report import Report
from tests.engine.sim.loads import CountedRunner, load, setup

BEGIN_S, END_S = 60.0, 120.0
WINDOW_S = 20.0


@cache
def run(engine: Setup, rt_rate: float) -> tuple[dict[Lane, list[float]], Report]:
    """Computed tokens per second and lane in each window of three minutes, and the report."""
    duration_s = 180.0
    replay = Replay(engine, load(Limits(96, 512, duration_s=duration_s), rt_rate=rt_rate))
    counted = CountedRunner(replay, WINDOW_S)
    report = replay.run()
    windows = range(int(duration_s / WINDOW_S))
    return {lane: [counted.tokens[lane][w] / WINDOW_S for w in windows] for lane in Lane}, report


def slow(factor: float) -> Setup:
    slowdown = Slowdown(factor, BEGIN_S, END_S) if factor != 1 else NEVER
    return dataclasses.replace(setup(Policy.BROS), slowdown=slowdown)


def is_slow(window: int) -> bool:
    return BEGIN_S <= window * WINDOW_S < END_S


@pytest.mark.parametrize("factor", [3.0, 5.0, 9.0])
def test_bulk_gets_what_a_suddenly_slower_machine_has_left(factor):
    usual, _ = run(slow(1), 0.0)
    found, _ = run(slow(factor), 0.0)
    for window, rate in enumerate(found[Lane.BE]):
        left = 0.8 / factor if is_slow(window) else 0.95
        assert rate >= left * usual[Lane.BE][window], (window, found)


def test_chats_keep_their_slo_on_a_machine_that_is_suddenly_three_times_slower():
    usual, _ = run(slow(1), 0.5)
    found, report = run(slow(3), 0.5)
    assert report.rt.attainment is not None and report.rt.attainment >= 0.98
    for lane_usual, lane_found in zip(usual[Lane.BE], found[Lane.BE], strict=True):
        assert lane_found >= 0.7 / 3 * lane_usual, found


@pytest.mark.parametrize("rt_rate", [0.0, 0.5])
@pytest.mark.parametrize("step_s", [0.25, 1.0])
def test_a_fixed_cost_above_the_limit_is_no_reason_to_compute_less(step_s, rt_rate):
    device = parse_device(f"cpu-mini,step_s={step_s}")
    found, _ = run(dataclasses.replace(setup(Policy.BROS), device=device), rt_rate)
    # The largest steps that fit take 52 ms for 128 tokens, in addition to the fixed cost.
    most = device.max_num_batched_tokens / (step_s + 0.052)
    assert sum(map(sum, found.values())) / len(found[Lane.BE]) >= 0.75 * most, found


def test_chats_keep_their_slo_as_long_as_the_fixed_cost_allows():
    engine = dataclasses.replace(setup(Policy.BROS), device=parse_device("cpu-mini,step_s=0.08"))
    _, report = run(engine, 0.5)
    assert report.rt.attainment is not None and report.rt.attainment > 0.95
