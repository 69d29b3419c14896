"""The outlook predicts the time to first token, and a rejected chat that comes back when told is admitted."""

import random

import pytest

from engine.core.events import FinishedEvent
from engine.core.outlook import Outlook, outlook
from engine.core.request import Request, State
from engine.core.scheduler import Scheduler
from engine.core.terms import SLO, Lane, SamplingParams
from engine.runner.simulated import SimulatedCost, SimulatedRunner
from tests.factories import request, runner_info, scheduler_for

COST = SimulatedCost(step_s=0.002, token_s=0.0005, row_s=0.0002)
PATIENT = SLO(1000.0, 0.05)  # no request is late, so they are served in order of arrival
FACTOR = 4.0


class World:
    """A scheduler, a runner, and a clock that only steps advance."""

    def __init__(self, **info: int) -> None:
        info = {"num_blocks": 4000, "block_size": 16, "max_model_len": 4096, "max_num_seqs": 32, **info}
        self.runner = SimulatedRunner(runner_info(**info))
        self.scheduler: Scheduler = scheduler_for(self.runner.info, max_num_batched_tokens=256)
        self.now_s = 0.0
        self.sent: list[Request] = []
        self.ttft_s: dict[str, float] = {}
        self.random = random.Random(7)

    def send(self, num_tokens: int, *, lane: Lane = Lane.RT, max_tokens: int = 4) -> Request:
        prompt = [self.random.randrange(3, 500) for _ in range(num_tokens)]
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        self.now_s += 1e-6
        slo = PATIENT if lane is Lane.RT else None
        new = Request(f"q{len(self.sent)}", lane, prompt, sampling, arrival_s=self.now_s, slo=slo)
        self.sent.append(new)
        self.scheduler.add(new)
        return new

    def step(self) -> None:
        plan = self.scheduler.schedule(self.now_s)
        result = self.runner.execute(plan)
        self.now_s += COST.of(plan) * self.random.uniform(0.95, 1.05)
        for event in self.scheduler.update(plan, result, self.now_s):
            if isinstance(event, FinishedEvent) and event.ttft_s is not None:
                self.ttft_s[event.request_id] = event.ttft_s

    def run(self, until_s: float = float("inf")) -> None:
        while self.scheduler.has_work and self.now_s < until_s:
            self.step()

    def outlook(self) -> Outlook:
        return outlook(self.scheduler, self.now_s, 0, 0)

    def excess_s(self, num_tokens: int, slo: SLO) -> float:
        return self.outlook().excess_s(num_tokens, slo, FACTOR, 0, 0)

    def learn(self, max_tokens: int = 4) -> None:
        """Let the scheduler learn what steps cost and how long requests hold their rows."""
        for _ in range(40):
            self.send(self.random.randrange(20, 400), max_tokens=max_tokens)
            self.run()


def test_the_rt_load_counts_the_tokens_still_to_compute():
    world = World()
    for _ in range(400):
        if world.random.random() < 0.4:
            lane = world.random.choice(list(Lane))
            world.send(world.random.randrange(1, 300), lane=lane)
        if world.random.random() < 0.05 and world.sent:
            world.scheduler.abort(world.random.choice(world.sent).request_id, world.now_s)
        if world.scheduler.has_work:
            world.step()
        behind = [r for r in world.sent if r.lane is Lane.RT and r.state in (State.WAITING, State.BEHIND)]
        assert world.scheduler.rt_load.num_tokens == sum(r.num_uncomputed_tokens for r in behind)
    world.run()
    assert world.scheduler.rt_load.num_tokens == 0


@pytest.mark.parametrize(
    ("rows", "blocks", "max_tokens"),
    [(32, 4000, 1), (32, 4000, 10), (5, 4000, 60), (32, 120, 60)],
    ids=["prompts only", "time", "rows", "memory"],
)
def test_the_prediction_comes_true(rows: int, blocks: int, max_tokens: int):
    world = World(max_num_seqs=rows, num_blocks=blocks, max_model_len=1024)
    world.learn(max_tokens)
    for _ in range(60):  # requests that run beside others hold their rows for longer
        world.send(200, max_tokens=max_tokens)
    world.run()
    predicted = {}
    for _ in range(60):
        now = world.outlook()
        alone_s = now.step_s + 200 * now.token_s
        new = world.send(200, max_tokens=max_tokens)
        predicted[new.request_id] = alone_s + now.wait_s(0, 0)
    world.run()
    for number in (20, 40, 59):
        name = world.sent[-60 + number].request_id
        assert world.ttft_s[name] == pytest.approx(predicted[name], rel=0.35), number


def test_no_chat_is_rejected_because_of_bulk_or_its_own_length():
    world = World()
    for num_tokens in (1, 4000, 10**6):
        assert world.excess_s(num_tokens, SLO(0.001, 0.001)) <= 0
    world.learn()
    for _ in range(50):
        world.send(300, lane=Lane.BE, max_tokens=100)
    for _ in range(20):
        world.step()
    for num_tokens in (1, 4000, 10**6):
        assert world.excess_s(num_tokens, SLO(0.001, 0.001)) <= 0


def test_a_rejected_chat_is_admitted_after_the_predicted_excess():
    world, slo = World(), SLO(0.2, 0.05)
    world.learn()
    while (excess_s := world.excess_s(200, slo)) <= 1.0:
        world.send(200)
    assert len(world.sent) > 40 + 5, "some were let in"
    assert world.excess_s(200, SLO(60.0, 0.05)) <= 0, "an SLO that leaves more time"
    told_s = world.now_s
    world.run(until_s=told_s + 0.5 * excess_s)
    assert world.excess_s(200, slo) > 0
    world.run(until_s=told_s + 1.3 * excess_s)
    assert world.excess_s(200, slo) <= 0


def test_no_chat_is_admitted_while_an_admitted_one_waits_beyond_the_bound():
    slo = SLO(0.5, 0.1)
    now = Outlook(backlog_tokens=150, token_s=0.001, num_requests=3, room=8, waited_s=2.1, slo_s=0.5)
    assert now.excess_s(10, slo, FACTOR, 0, 0) == pytest.approx(0.15)
    assert now._replace(waited_s=1.9).excess_s(10, slo, FACTOR, 0, 0) <= 0
    assert now._replace(slo_s=1.0).excess_s(10, slo, FACTOR, 0, 0) <= 0


def test_requests_on_their_way_to_the_main_loop_count():
    now = Outlook(num_received=10, num_received_tokens=1000, token_s=0.01, room=8)
    assert now.excess_s(100, SLO(0.5, 0.1), FACTOR, 10, 1000) <= 0
    assert now.excess_s(100, SLO(0.5, 0.1), FACTOR, 20, 2000) == pytest.approx(1.0 + 10.0 - 4 * 1.0)


def test_an_aborted_request_leaves_nothing_in_the_rt_load():
    world = World()
    world.scheduler.add(request(range(100), lane=Lane.RT, request_id="gone"))
    assert world.scheduler.rt_load.num_tokens == 100
    world.scheduler.abort("gone", 0.0)
    assert world.scheduler.rt_load.num_tokens == 0
    assert not world.scheduler.rt_load._counted
