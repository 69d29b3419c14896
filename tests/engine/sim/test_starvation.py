"""Bulk does not starve: it gets its share and finishes even with twice as many chats as the engine can serve."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest

from engine.core.terms import SLO, Lane, Policy
from engine.sim.device import DEVICES, StepCost
from engine.sim.feed import Limits
from engine.sim.replay import Replay
from engine.sim.traces.arrival import Arrival
from tests.engine.sim.loads import CountedRunner, fixed, setup

HOUR_S = 3600.0
# A device so slow that an hour has about two thousand steps, and an SLO to match: a full step takes 2.6 s.
SLOW = StepCost(step_s=1.0, token_s=0.01, row_s=0.01, context_s=2e-5, copied_s=2e-4)
SLOW_SLO = SLO(ttft_s=12.0, tpot_s=3.0)
CHAT_TOKENS, CHAT_OUTPUT = 60, 20


def overload(num_items: int, until_s: float, rate: float) -> list[Arrival]:
    chats = [Arrival(i / rate, Lane.RT, CHAT_TOKENS, CHAT_OUTPUT) for i in range(int(until_s * rate))]
    return chats + [Arrival(0.0, Lane.BE, 200, 40) for _ in range(num_items)]


def slow_engine(kv_tokens: int):
    device = dataclasses.replace(
        DEVICES["cpu-mini"],
        cost=SLOW,
        max_num_seqs=32,
        max_num_batched_tokens=128,
        kv_tokens=kv_tokens,
        host_tokens=kv_tokens,
    )
    return dataclasses.replace(setup(Policy.BROS), device=device, slo=SLOW_SLO)


@cache
def capacity(kv_tokens: int) -> float:
    """Chats per second that the engine can serve when it has nothing else to do."""
    run = Replay(slow_engine(kv_tokens), fixed(overload(0, 300.0, 20.0), Limits(1, duration_s=300.0)))
    return run.run().rt.requests_per_s


@pytest.mark.parametrize("kv_tokens", [32768, 1536], ids=["ample", "scarce"])
def test_bulk_gets_its_share_under_overload(kv_tokens):
    engine = slow_engine(kv_tokens)
    rate = 2 * capacity(kv_tokens)
    # The server rejects chats above a limit, and those that it admits are late: there is always more demand.
    limits = Limits(be_in_flight=64, max_open_rt=512, duration_s=HOUR_S)
    run = Replay(engine, fixed(overload(100_000, HOUR_S, rate), limits))
    window_s = 600.0  # about three hundred steps, of which bulk may be owed one
    counted = CountedRunner(run, window_s)
    found = run.run()
    assert found.rt.num_rejected > 0
    shares = []
    for window in range(int(HOUR_S / window_s)):
        be, rt = counted.tokens[Lane.BE][window], counted.tokens[Lane.RT][window]
        shares.append(be / (be + rt))
    # A window may lack what was owed when it began and, if memory is full, what found no slots in time.
    assert min(shares) >= (0.85 if kv_tokens > 10_000 else 0.75) * engine.be_share, shares
    assert sum(shares) / len(shares) >= 0.98 * engine.be_share
    assert sum(shares) / len(shares) < 0.5, "chat goes first"
    assert found.be.num_succeeded > 0


@pytest.mark.parametrize("kv_tokens", [32768, 1536], ids=["ample", "scarce"])
def test_every_item_finishes_under_overload(kv_tokens):
    engine = slow_engine(kv_tokens)
    rate = 2 * capacity(kv_tokens)
    num_items = 8
    limits = Limits(be_in_flight=64, max_open_rt=512)
    run = Replay(engine, fixed(overload(num_items, HOUR_S, rate), limits))
    ended_s: list[float] = []
    outcomes = run.feed.outcomes[Lane.BE]
    record_finished = outcomes.record_finished

    def noted(event, now_s, *, is_counted):
        ended_s.append(now_s)
        record_finished(event, now_s, is_counted=is_counted)

    outcomes.record_finished = noted  # type: ignore[method-assign]
    found = run.run()
    assert found.be.num_succeeded == len(ended_s) == num_items
    assert ended_s[-1] < HOUR_S, "items were left until the chats had ended"
    assert found.stalled_s == 0.0
