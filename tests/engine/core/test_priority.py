"""Bulk of a higher priority does not wait for bulk of a lower one to end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.request import State
from engine.core.terms import Lane
from tests.factories import Outputs, Steps, request, scheduler_for, simulated_runner

STEPS_UNTIL_FIRST_TOKEN = 12


def run_until_full(steps: Steps, num_rows: int) -> float:
    """Step until all rows of bulk are decoding. Returns the time."""
    now_s = 0.0
    while steps.scheduler.num_requests(Lane.BE)[0] < num_rows:
        now_s += 1.0
        steps.step(now_s)
    return now_s


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("num_blocks", [400, 22], ids=["ample memory", "scarce memory"])
def test_an_urgent_request_starts_although_others_hold_all_rows(num_blocks: int, ahead: bool) -> None:
    runner = simulated_runner(num_blocks=num_blocks, block_size=4, max_num_seqs=5, max_model_len=80)
    scheduler = scheduler_for(runner.info)
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs, ahead=ahead)
    low = [request([5, 6, 7 + i], max_tokens=60) for i in range(20)]
    for r in low:
        scheduler.add(r)
    now_s = 0.0
    for _ in range(14):
        now_s += 1.0
        steps.step(now_s)
    assert scheduler.num_requests(Lane.BE)[1], "some wait, for a row or for memory"
    urgent = [request(list(range(3, 20 + i)), max_tokens=8, priority=10) for i in range(2)]
    for r in urgent:
        scheduler.add(r)
    for _ in range(STEPS_UNTIL_FIRST_TOKEN):
        now_s += 1.0
        steps.step(now_s)
        scheduler.check_integrity()
    assert all(outputs.token_ids.get(r.request_id) for r in urgent)
    steps.run_to_end()
    for r in (*low, *urgent):
        prompt = r.token_ids[: r.num_prompt_tokens]
        assert outputs.token_ids[r.request_id] == runner.continuation(prompt, r.sampling)


def test_equal_priority_takes_no_row() -> None:
    runner = simulated_runner(num_blocks=400, block_size=4, max_num_seqs=5, max_model_len=80)
    scheduler = scheduler_for(runner.info)
    steps = Steps(scheduler, runner, Outputs())
    low = [request([5, 6, 7 + i], max_tokens=60, priority=3) for i in range(4)]
    for r in low:
        scheduler.add(r)
    now_s = run_until_full(steps, 4)
    for _ in range(6):
        scheduler.add(request([9, 9, 9], priority=3))
        now_s += 1.0
        steps.step(now_s)
        assert all(r.state is not State.WAITING for r in low)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([Lane.BE, Lane.BE, Lane.RT]),
            st.integers(1, 40),
            st.integers(1, 20),
            st.integers(0, 30),
            st.sampled_from([-1, 0, 0, 5]),
        ),
        min_size=1,
        max_size=25,
    ),
    st.integers(13, 30),
    st.sampled_from([1, 4, 16]),
    st.booleans(),
)
def test_priorities_change_no_output_and_every_request_ends(
    arrivals: list[tuple[Lane, int, int, int, int]], num_blocks: int, block_size: int, ahead: bool
) -> None:
    num_blocks = -(-num_blocks * 5 // block_size)
    runner = simulated_runner(
        num_blocks=num_blocks, block_size=block_size, max_num_seqs=5, max_model_len=64, mean_output_tokens=8
    )
    scheduler = scheduler_for(runner.info)
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs, ahead=ahead)
    by_step: dict[int, list[int]] = {}
    requests = []
    for number, (lane, prompt, max_tokens, at_step, priority) in enumerate(arrivals):
        prompt_ids = [3 + (number + i) % 50 for i in range(prompt)]
        requests.append(request(prompt_ids, lane=lane, max_tokens=max_tokens, priority=priority))
        by_step.setdefault(at_step, []).append(number)
    for number in range(31):
        for index in by_step.get(number, ()):
            scheduler.add(requests[index])
        steps.step(float(number))
        scheduler.check_integrity()
    steps.run_to_end()
    for r in requests:
        expected = runner.continuation(r.token_ids[: r.num_prompt_tokens], r.sampling)
        assert outputs.token_ids[r.request_id] == expected[: r.end_tokens - r.num_prompt_tokens]


def test_nobody_loses_a_row_to_an_urgent_request_that_finds_no_memory_anyway() -> None:
    """A chat holds most of the memory: what has rows goes on, and the urgent request waits for the chat to end."""
    runner = simulated_runner(num_blocks=40, block_size=4, max_num_seqs=5, max_model_len=160)
    scheduler = scheduler_for(runner.info)
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs)
    chat = request(list(range(3, 103)), lane=Lane.RT, max_tokens=30)
    scheduler.add(chat)
    low = [request([5, 6, 7 + i], max_tokens=12) for i in range(2)]
    for r in low:
        scheduler.add(r)
    now_s = run_until_full(steps, 2)
    urgent = request(list(range(3, 90)), max_tokens=4, priority=10)
    scheduler.add(urgent)
    for _ in range(8):
        now_s += 1.0
        steps.step(now_s)
        scheduler.check_integrity()
        assert not any(r.num_preemptions for r in low)
    steps.run_to_end()
    for r in (chat, *low, urgent):
        prompt = r.token_ids[: r.num_prompt_tokens]
        assert outputs.token_ids[r.request_id] == runner.continuation(prompt, r.sampling)
