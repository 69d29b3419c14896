"""A long output limit reserves nothing: neither memory nor the time of others depends on it."""

from __future__ import annotations

from engine.core.outlook import Outlook, outlook
from engine.core.plan import StepPlan
from engine.core.terms import Lane
from tests.factories import request, runner_info, scheduler_for, simulated_runner

MAX_MODEL_LEN = 128
NUM_STEPS = 40


def computed(plan: StepPlan) -> tuple[object, ...]:
    """What a step computes, and where."""
    return plan.rows, plan.starts, plan.counts, plan.samples, plan.token_ids, plan.slots


def steps(max_tokens: int) -> list[tuple[object, Outlook, int]]:
    """The first steps of an engine whose requests have this limit, with the outlook and the free memory after each."""
    info = runner_info(num_blocks=256, max_model_len=MAX_MODEL_LEN)
    scheduler, runner = scheduler_for(info), simulated_runner(num_blocks=256, max_model_len=MAX_MODEL_LEN)
    for number in range(6):
        lane = Lane.RT if number % 2 else Lane.BE
        prompt = range(5, 9 + number)
        scheduler.add(request(prompt, lane=lane, max_tokens=max_tokens, request_id=f"r{number}"))
    found = []
    for number in range(NUM_STEPS):
        plan = scheduler.schedule(float(number))
        scheduler.update(plan, runner.execute(plan), number + 0.5)
        found.append((computed(plan), outlook(scheduler, number + 0.5, 6, 60), scheduler.kv.num_free_blocks))
    assert scheduler.has_work, "the requests must not have ended"
    return found


def test_an_output_limit_changes_nothing_until_it_is_reached() -> None:
    just_enough, the_rest_of_the_context, without_end = (steps(limit) for limit in (60, 110, 2**31 - 1))
    assert the_rest_of_the_context == just_enough
    assert without_end == just_enough
