"""The engine on a virtual clock: no request is lost, a seed determines the result, and each lane gets its due share."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from engine.core.events import FinishedEvent, TokenEvent
from engine.core.terms import SLO, FinishReason, Lane, Policy
from engine.sim.clock import VirtualClock
from engine.sim.device import DEVICES, StepCost, parse_device
from engine.sim.feed import Limits, Stuck
from engine.sim.outcomes import Timeline, percentile
from engine.sim.replay import Replay, replay
from engine.sim.traces.arrival import Arrival
from tests.engine.sim.loads import fixed, load, setup


def test_time_passes_only_forwards():
    clock = VirtualClock()
    clock.advance(1.5)
    clock.jump_to(4.0)
    clock.jump_to(2.0)
    assert clock() == clock.now_s == 4.0
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-0.1)


def test_idle_time_is_skipped():
    arrivals = [Arrival(1000.0 * i, Lane.RT, 20, 3) for i in range(4)]
    found = replay(setup(), fixed(arrivals, Limits(be_in_flight=8)))
    assert found.rt.num_succeeded == 4
    assert 3000.0 < found.virtual_s < 3001.0
    assert found.num_steps == 12
    assert found.rt.ttft.p99_s is not None and found.rt.ttft.p99_s < 0.1
    assert found.stalled_s == 0.0


def test_a_step_takes_what_the_device_says():
    cost = StepCost(
        step_s=1.0, weights_s=10.0, token_s=0.1, row_s=0.01, context_s=1e-3, pair_s=1e-4, copied_s=1e-5
    )
    assert cost.step_time_s(tokens=1, rows=1, read=100, pairs=100.0, copied=0) == pytest.approx(11.11)
    assert cost.step_time_s(tokens=200, rows=2, read=100, pairs=10_000.0, copied=10) == pytest.approx(22.0201)
    device = dataclasses.replace(DEVICES["cpu-mini"], cost=StepCost(step_s=0.01, token_s=0.001, pair_s=1e-6))
    engine = dataclasses.replace(setup(), device=device, noise=0.0)
    found = replay(engine, fixed([Arrival(0.0, Lane.RT, 10, 2)], Limits(be_in_flight=1)))
    # Ten tokens with 55 (token, earlier or same token) pairs, then one with 11.
    assert found.virtual_s == pytest.approx(0.02 + 0.011 + 66e-6)


def test_presets_match_measurements_and_data_sheets():
    a100, h200 = DEVICES["a100-8b"].cost, DEVICES["h200-8b"].cost
    single_ms = [1000 * cost.step_time_s(1, 1, 500, 500.0, 0) for cost in (a100, h200)]
    assert single_ms == pytest.approx([11.9, 6.2], abs=0.2)
    assert 400_000 < DEVICES["a100-8b"].kv_tokens < 450_000
    for rows, measured_ms in ((1, 10.7), (8, 16.6), (64, 74.0)):  # benchmarks/LOG.md
        predicted_s = DEVICES["cpu-mini"].cost.step_time_s(rows, rows, 300 * rows, 300.0 * rows, 0)
        assert predicted_s * 1000 == pytest.approx(measured_ms, rel=0.06)


def test_devices_are_parsed_from_coefficients():
    assert parse_device("cpu-mini") is DEVICES["cpu-mini"]
    assert parse_device("step_s=0.01,token_s=0.001").cost == StepCost(step_s=0.01, token_s=0.001)
    assert parse_device("h200-8b,step_s=0.5").cost == dataclasses.replace(DEVICES["h200-8b"].cost, step_s=0.5)
    for text, sentence in (
        ("gpu", "there is no device 'gpu'; there are cpu-mini"),
        ("speed=1", "'speed' is not a coefficient; there are step_s"),
        ("step_s=fast", "not a number of seconds"),
        ("step_s=-1", "zero or more"),
        ("step_s=0", "take no time"),
    ):
        with pytest.raises(ValueError, match=sentence):
            parse_device(text)


@pytest.mark.parametrize("policy", Policy)
def test_same_seed_same_result(policy):
    def run(seed):
        limits = Limits(be_in_flight=24, num_requests=100)
        return replay(setup(policy, seed=seed, max_num_seqs=16), load(limits, rt_rate=3.0, seed=seed))

    assert run(1) == run(1)
    assert run(1) != run(2)


class Ledger:
    """Records every event of a replay before the replay itself gets it."""

    def __init__(self, replay: Replay) -> None:
        self.tokens: Counter[str] = Counter()
        self.ends: dict[str, FinishedEvent] = {}
        self.lengths: dict[str, int] = {}
        self._replay = replay
        replay.loop._send = self.send

    def send(self, events):
        for event in events:
            assert event.request_id not in self.ends, "an event after the end"
            self.lengths.setdefault(event.request_id, self._replay.feed.output_tokens[event.request_id])
            if isinstance(event, TokenEvent):
                self.tokens[event.request_id] += 1
            else:
                self.ends[event.request_id] = event
        self._replay.feed.send(events)


@pytest.mark.parametrize("kv_tokens", [32768, 3072], ids=["ample", "scarce"])
@pytest.mark.parametrize("policy", Policy)
def test_every_request_finishes_once_with_all_its_tokens(policy, kv_tokens):
    limits = Limits(be_in_flight=40, num_requests=250)
    run = Replay(setup(policy, max_num_seqs=24, kv_tokens=kv_tokens), load(limits, rt_rate=3.0))
    ledger = Ledger(run)
    found = run.run()
    assert len(ledger.ends) == found.rt.num_succeeded + found.be.num_succeeded == 250
    assert found.rt.num_unfinished == found.be.num_unfinished == 0
    for request_id, event in ledger.ends.items():
        assert event.reason is FinishReason.STOP
        assert event.num_output_tokens == ledger.tokens[request_id] == ledger.lengths[request_id]
    assert found.rt.output_tokens + found.be.output_tokens == sum(ledger.tokens.values())
    assert run.scheduler.kv.num_free_blocks == run.scheduler.kv.num_blocks
    run.scheduler.check_integrity()
    if kv_tokens == 3072:
        assert found.preemptions
    assert found.stalled_s == 0.0


def test_bulk_alone_is_never_preempted():
    found = replay(setup(), load(Limits(be_in_flight=96, num_requests=300)))
    assert (found.preemptions, found.truncated_tokens) == (0, 0)
    assert found.rt.attainment is None


def test_bros_attains_the_slo_more_often_than_the_baselines():
    def run(policy):
        limits = Limits(be_in_flight=96, duration_s=50.0, warmup_s=10.0)
        return replay(setup(policy), load(limits, rt_rate=4.0))

    bros, priority, fcfs = (run(policy) for policy in (Policy.BROS, Policy.PRIORITY, Policy.FCFS))
    assert bros.rt.attainment > 0.97
    assert bros.rt.attainment > priority.rt.attainment > fcfs.rt.attainment
    assert bros.be.output_tokens_per_s > 0.85 * priority.be.output_tokens_per_s


def test_the_learned_cost_model_predicts_a_noisy_device():
    found = replay(setup(), load(Limits(be_in_flight=96, num_requests=300), rt_rate=2.0))
    assert found.cost_model_error_ratio < 0.12  # the noise alone is 0.04


def test_rejected_chats_miss_their_slo():
    arrivals = [Arrival(0.0, Lane.RT, 20, 3) for _ in range(10)]
    found = replay(setup(), fixed(arrivals, Limits(be_in_flight=1, max_open_rt=4)))
    assert (found.rt.num_arrived, found.rt.num_rejected, found.rt.num_succeeded) == (10, 6, 4)
    assert found.rt.attainment == pytest.approx(0.4)


def test_unfinished_chats_count_if_they_are_late():
    """Of a hundred chats at once, few finish in five seconds; those few must not stand for all."""
    arrivals = [Arrival(0.0, Lane.RT, 1500, 100) for _ in range(100)]
    found = replay(setup(), fixed(arrivals, Limits(be_in_flight=1, duration_s=5.0)))
    assert found.rt.num_unfinished > 90
    assert found.rt.attainment < 0.1


def test_prompts_too_long_fail_alone():
    arrivals = [Arrival(0.0, Lane.BE, 5000, 3), Arrival(0.0, Lane.BE, 50, 3)]
    found = replay(setup(), fixed(arrivals, Limits(be_in_flight=4)))
    assert (found.be.num_failed, found.be.num_succeeded) == (1, 1)


def test_a_warm_up_does_not_count():
    limits = Limits(be_in_flight=8, num_requests=150, warmup_s=10.0)
    run = Replay(setup(), load(limits, rt_rate=3.0))
    found = run.run()
    counted = run.feed.outcomes[Lane.RT].num_counted
    assert 0 < counted < found.rt.num_succeeded
    assert found.measured_s < found.virtual_s - 10.0 + 1e-9


def test_bulk_is_pulled_only_while_there_is_room():
    arrivals = [Arrival(0.1 * i, Lane.BE, 200, 30) for i in range(60)]
    run = Replay(setup(), fixed(arrivals, Limits(be_in_flight=5)))
    most = 0

    def receive(wait):
        nonlocal most
        messages = run.feed.receive(wait)
        most = max(most, len(run.feed.output_tokens))
        return messages

    run.loop._receive = receive
    assert run.run().be.num_succeeded == 60
    assert most == 5


def test_an_engine_that_stops_with_work_left_is_reported():
    run = Replay(setup(), fixed([Arrival(0.0, Lane.BE, 20, 3)], Limits(be_in_flight=1)))
    run.scheduler._policy.pack = lambda batch: None
    with pytest.raises(Stuck, match="1 requests and plans nothing"):
        run.run()


def test_known_prefixes_are_reused():
    arrivals = [Arrival(0.5 * i, Lane.BE, 300, 4, prefix="contract", prefix_tokens=256) for i in range(6)]
    engine = dataclasses.replace(setup(), prefix_cache=True)
    run = Replay(engine, fixed(arrivals, Limits(be_in_flight=1)))
    run.run()
    assert run.scheduler.kv.prefix.num_hit_tokens == 5 * 256


def test_requests_may_have_their_own_slo():
    arrivals = [Arrival(0.0, Lane.RT, 20, 3, slo=SLO(1e-6, 1.0)), Arrival(0.0, Lane.RT, 20, 3)]
    found = replay(setup(), fixed(arrivals, Limits(be_in_flight=1)))
    assert found.rt.attainment == pytest.approx(0.5)


def test_percentiles_and_timelines():
    assert percentile([], 50) is None
    assert [percentile(range(1, 101), p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]
    timeline = Timeline(bucket_s=1.0)
    for second in range(1000):
        timeline.add(second, 3.0)
    assert sum(timeline.sums) == pytest.approx(3000.0)
    times, rates = timeline.rates(10)
    assert len(times) <= 10
    assert rates == pytest.approx([3.0] * len(rates))
