"""Random small engines and loads: every request ends, and no engine stops or works without progress."""

from __future__ import annotations

import dataclasses
import random

import pytest

from engine.core.terms import SLO, Lane, Policy
from engine.sim.device import DEVICES, StepCost
from engine.sim.feed import Limits
from engine.sim.replay import Replay, Setup
from engine.sim.traces.arrival import Arrival
from tests.engine.sim.loads import fixed

MOST_OUTPUT_TOKENS = 40
MOST_STEPS_WITHOUT_AN_END = 3000
NUM_SEEDS = 60


def run_to_end(setup: Setup, arrivals: list[Arrival], limits: Limits) -> Replay:
    """Raise AssertionError if the engine keeps working and no request ends."""
    replay = Replay(setup, fixed(arrivals, limits))
    execute = replay.runner.execute
    since = {"steps": 0, "ended": 0}

    def counted(plan):
        ended = sum(sum(lane.num_finished.values()) for lane in replay.feed.outcomes.values())
        since["steps"] = 0 if ended > since["ended"] else since["steps"] + 1
        since["ended"] = ended
        assert since["steps"] < MOST_STEPS_WITHOUT_AN_END, (
            f"no request ends; open are {replay.feed._open.values()}"
        )
        if since["steps"] % 16 == 1:
            replay.scheduler.kv.host.check_integrity()
        return execute(plan)

    schedule = replay.scheduler.schedule

    def checked(now_s):
        plan = schedule(now_s)
        carried = (plan.row_starts, plan.restores, plan.copies_out)
        assert not plan.is_empty or not any(carried), "the loop drops an empty plan, and with it these"
        return plan

    replay.scheduler.schedule = checked  # type: ignore[method-assign]
    replay.runner.execute = counted  # type: ignore[method-assign]
    found = replay.run()
    lanes = (found.rt, found.be)
    assert sum(lane.num_succeeded + lane.num_rejected for lane in lanes) == len(arrivals)
    assert sum(lane.num_unfinished + lane.num_failed for lane in lanes) == 0
    assert found.stalled_s == 0.0
    replay.scheduler.check_integrity()
    assert replay.scheduler.kv.num_free_blocks == replay.scheduler.kv.num_blocks
    return replay


def random_setup(rng: random.Random, seed: int) -> Setup:
    kv_tokens = rng.choice([128, 192, 256, 512, 1024])
    device = dataclasses.replace(
        DEVICES["cpu-mini"],
        cost=StepCost(
            step_s=rng.choice([1e-3, 1e-2]),
            weights_s=rng.choice([0.0, 5e-3]),
            token_s=rng.choice([1e-5, 1e-3]),
            row_s=1e-4,
            context_s=rng.choice([0.0, 1e-6]),
            pair_s=rng.choice([0.0, 1e-6]),
            copied_s=1e-5,
        ),
        kv_tokens=kv_tokens,
        host_tokens=rng.choice([0, kv_tokens, 4 * kv_tokens]),
        max_num_seqs=rng.choice([2, 3, 4, 8, 16]),
        max_num_batched_tokens=rng.choice([1, 2, 8, 16, 64, 256]),
    )
    return Setup(
        device,
        rng.choice(list(Policy)),
        SLO(0.2, 0.05, rng.choice([None, 0.01, 0.5])),
        be_share=rng.choice([0.0, 0.05, 0.5]),
        prefix_cache=rng.random() < 0.5,
        noise=rng.choice([0.0, 0.05, 0.5]),
        seed=seed,
    )


def random_arrivals(rng: random.Random, kv_tokens: int) -> list[Arrival]:
    """Random requests, none of which needs more than half of the memory."""
    arrivals, time_s, rate = [], 0.0, rng.choice([0.5, 5.0, 50.0])
    for _ in range(rng.randint(1, 80)):
        time_s += rng.expovariate(rate)
        lane = rng.choice(list(Lane))
        prompt_tokens = rng.randint(1, kv_tokens // 2 - MOST_OUTPUT_TOKENS - 5)
        slo = SLO(rng.choice([0.01, 0.2, 5.0]), rng.choice([0.005, 0.1]), rng.choice([None, 0.05]))
        arrival = Arrival(time_s, lane, prompt_tokens, rng.randint(1, MOST_OUTPUT_TOKENS))
        if rng.random() < 0.5:
            arrival = arrival._replace(slo=slo, priority=rng.choice([0, 0, 1]))
        if rng.random() < 0.3:
            arrival = arrival._replace(deadline_s=time_s + rng.random() * 10)
        if rng.random() < 0.3:
            arrival = arrival._replace(
                prefix=f"p{rng.randint(0, 2)}", prefix_tokens=rng.randint(1, prompt_tokens)
            )
        arrivals.append(arrival)
    return arrivals


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_every_request_ends(seed):
    rng = random.Random(seed)
    setup = random_setup(rng, seed)
    limits = Limits(be_in_flight=rng.choice([1, 4, 40]), max_open_rt=rng.choice([None, 3]))
    run_to_end(setup, random_arrivals(rng, setup.device.kv_tokens), limits)


# A request in blocks that it shared with others holds more blocks than its tokens need. If it needs all of the memory,
# the blocks never suffice, and it has to give up some of its own tokens and compute them again.
NEARLY_ALL_OF_MEMORY = {
    "both lanes take from each other": (
        {"kv_tokens": 64, "host_tokens": 256, "max_num_batched_tokens": 8},
        0.5,
        [(1.0093, Lane.BE, 56, 2), (1.0473, Lane.RT, 16, 26), (1.0765, Lane.RT, 44, 34)],
    ),
    "without a share for bulk": (
        {"kv_tokens": 256, "host_tokens": 0, "max_num_batched_tokens": 64},
        0.0,
        [
            (0.137, Lane.BE, 249, 2),
            (0.362, Lane.RT, 101, 20),
            (0.612, Lane.RT, 29, 13),
            (1.411, Lane.RT, 205, 40),
        ],
    ),
}


@pytest.mark.parametrize("name", NEARLY_ALL_OF_MEMORY)
def test_requests_that_need_nearly_all_of_memory_end(name):
    limits, be_share, arrivals = NEARLY_ALL_OF_MEMORY[name]
    cost = StepCost(step_s=0.01, token_s=0.001 * (be_share == 0), row_s=1e-4 * (be_share == 0))
    device = dataclasses.replace(DEVICES["cpu-mini"], cost=cost, max_num_seqs=8, **limits)
    setup = Setup(device, Policy.BROS, SLO(0.2, 0.05), be_share, noise=0.0)
    run_to_end(setup, [Arrival(*arrival) for arrival in arrivals], Limits(be_in_flight=40))
