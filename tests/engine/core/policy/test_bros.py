"""How BROS packs steps, on a virtual clock and with a runner whose steps take a known time."""

import random

import pytest

from engine.core.cost_model import StepShape
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.terms import SLO, Lane, Policy
from engine.runner.simulated import SimulatedRunner
from tests.factories import Outputs, request, scheduler_for, simulated_runner

STEP_S, TOKEN_S = 0.002, 0.0005


class Clocked:
    """A scheduler and a runner on a clock: a step takes STEP_S, and TOKEN_S for each token."""

    def __init__(self, policy: Policy = Policy.BROS, max_num_batched_tokens: int = 512, **info: int) -> None:
        self.runner: SimulatedRunner = simulated_runner(**{"num_blocks": 4000, "max_model_len": 2048, **info})
        self.scheduler: Scheduler = scheduler_for(
            self.runner.info, policy=policy, max_num_batched_tokens=max_num_batched_tokens
        )
        self.outputs = Outputs()
        self.now_s = 0.0
        rng = self.rng = random.Random(0)
        for _ in range(200):  # the cost model has seen steps before
            shape = StepShape()
            for _ in range(rng.randint(0, 20)):
                shape.add_chunk(rng.randint(1, 300), 1)
            if rng.random() < 0.7 or not shape.rows:
                shape.add_chunk(0, rng.randint(2, 400))
            self.scheduler.cost_model.observe(shape, STEP_S + TOKEN_S * shape.tokens)

    def add(self, lane: Lane, num_prompt: int = 20, max_tokens: int = 50, **options) -> Request:
        slo = options.pop("slo", SLO(0.15, 0.035))
        prompt = [self.rng.randrange(3, 400) for _ in range(num_prompt)]
        r = request(prompt, lane=lane, max_tokens=max_tokens, arrival_s=self.now_s, **options)
        if lane is Lane.RT:
            r.slo = slo
        self.scheduler.add(r)
        return r

    def step(self, *, checks: bool = True):
        plan = self.scheduler.schedule(self.now_s)
        self.now_s += STEP_S + TOKEN_S * plan.num_tokens
        self.num_be_tokens = 0
        if not plan.is_empty:
            self.num_be_tokens = self.scheduler._under_way[-1].num_be_tokens
            self.outputs.hear(self.scheduler.update(plan, self.runner.execute(plan), self.now_s))
        if checks:
            self.scheduler.check_integrity()
        return plan


def test_bulk_fills_the_time_that_chats_leave():
    c = Clocked(max_num_seqs=64)
    for _ in range(60):
        c.add(Lane.BE, 300, 50)
    chat = c.add(Lane.RT, 40, 30)
    steps = []
    while chat.request_id not in c.outputs.finished:
        before_s = c.now_s
        c.step()
        steps.append(c.now_s - before_s)
    finished = c.outputs.finished[chat.request_id]
    assert finished.slo_met
    assert finished.tpot_s == pytest.approx(0.035 * 0.95, rel=0.1), (
        "as late as its SLO allows: bulk gets the rest of the time"
    )
    assert max(steps[1:]) < 0.045


def test_priority_with_a_fixed_budget_misses_where_bros_does_not():
    met = {}
    for policy in Policy:
        c = Clocked(policy, max_num_batched_tokens=256, max_num_seqs=64)
        for _ in range(200):
            c.add(Lane.BE, 300, 50)
        for i in range(400):
            if i % 25 == 5:
                c.add(Lane.RT, 40, 10)
            c.step(checks=i % 20 == 19)  # of 4,000 blocks, which takes longer than the step
        chats = [f for f in c.outputs.finished.values() if f.lane is Lane.RT]
        met[policy] = sum(bool(f.slo_met) for f in chats) / len(chats)
    assert met[Policy.BROS] > 0.9
    assert met[Policy.PRIORITY] < 0.5 and met[Policy.FCFS] < 0.5


def test_the_earliest_deadline_goes_first_and_late_prompts_last():
    c = Clocked(max_num_batched_tokens=64)
    c.add(Lane.RT, 60, 5, slo=SLO(5.0, 1.0), request_id="patient")
    c.add(Lane.RT, 60, 5, slo=SLO(0.001, 1.0), request_id="hopeless")
    c.add(Lane.RT, 60, 5, slo=SLO(0.5, 1.0), request_id="hurried")
    first: list[str] = []
    while len(first) < 3:
        c.step()
        first += [name for name in c.outputs.token_ids if name not in first]
    assert first == ["hurried", "patient", "hopeless"]


def test_bulk_goes_by_priority_then_deadline_then_age():
    c = Clocked(max_num_seqs=2)
    names = {"late": (0, None), "later": (0, 100.0), "soon": (0, 50.0), "first": (5, None)}
    for name, (priority, deadline_s) in names.items():
        r = request([5, 6, 7], max_tokens=2, priority=priority, request_id=name)
        r.deadline_s = deadline_s
        c.scheduler.add(r)
    while c.scheduler.has_work:
        c.step()
    assert list(c.outputs.finished) == ["first", "soon", "later", "late"]


@pytest.mark.parametrize("num_blocks", [4000, 60])
def test_bulk_gets_its_share_and_ends_under_more_chat_than_there_is_time_for(num_blocks):
    c = Clocked(max_num_batched_tokens=128, max_num_seqs=16, num_blocks=num_blocks, block_size=16)
    bulk = [c.add(Lane.BE, 100, 40) for _ in range(6)]
    num_be = num_all = 0
    steps_when_starving = 0
    while any(r.request_id not in c.outputs.finished for r in bulk):
        for _ in range(3):
            if c.scheduler.backlog.num_waiting[Lane.RT] < 50:
                c.add(Lane.RT, 100, 20)
        plan = c.step()
        num_be += c.num_be_tokens
        num_all += plan.num_tokens
        steps_when_starving += c.scheduler.pace.is_be_starving
        assert c.now_s < 2000, "bulk starves"
    assert num_be / num_all >= 0.04
    assert c.scheduler.backlog.num_waiting[Lane.RT] > 10, "the chats were too many"


def test_a_request_preempted_often_is_spared():
    c = Clocked(num_blocks=24, block_size=16, max_num_seqs=8)
    bulk = [c.add(Lane.BE, 100, 60) for _ in range(3)]
    for _ in range(5):
        c.step()
    bulk[2].num_preemptions = 99
    before = bulk[2].num_computed_tokens
    for _ in range(2):
        c.add(Lane.RT, 80, 4)
    c.step()
    assert bulk[2].num_computed_tokens >= before
    assert bulk[1].num_preemptions == 1, "the youngest of the others is the victim"
