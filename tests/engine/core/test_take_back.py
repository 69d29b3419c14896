"""After the runner has lost all it holds, outputs are the same as without the loss, in every state of a request.

A simulated runner that restarts has zeros in its memory: if the scheduler still relied on a slot, a copy or a prefix,
an output would be wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.policy.victims import BrosVictims
from engine.core.request import UNKNOWN, Request, State
from engine.core.scheduler import Scheduler
from engine.core.terms import FinishReason, Lane, Policy
from tests.factories import Outputs, RestartingRunner, Steps, request, scheduler_for

# (lane, token id of the whole prompt, its length, output tokens, steps until the next request, whether it is aborted
# then). There are three rows: the first requests need more than that, and of the others memory holds one or two at a
# time. Some need all of it.
RT, BE = Lane.RT, Lane.BE
CROWD = (
    (BE, 8, 5, 12, 2, False), (BE, 9, 5, 12, 2, False), (RT, 10, 4, 6, 0, False), (RT, 11, 4, 6, 8, False),
    (RT, 12, 4, 9, 2, True), (RT, 12, 4, 9, 10, False),
    (BE, 3, 25, 15, 6, False), (BE, 4, 15, 16, 6, False), (RT, 5, 23, 28, 2, False), (RT, 6, 9, 34, 1, False),
    (BE, 3, 35, 19, 5, False), (RT, 3, 27, 30, 4, False), (BE, 3, 9, 9, 1, True), (RT, 3, 5, 9, 2, True),
    (BE, 7, 4, 3, 3, False), (RT, 5, 13, 2, 1, False), (RT, 5, 14, 1, 1, False), (BE, 3, 13, 6, 0, False),
)  # fmt: skip
MEMORY = {
    "num_blocks": 10,
    "block_size": 4,
    "max_num_seqs": 3,
    "max_model_len": 64,
    "num_host_slots": 8,
    "mean_output_tokens": 30,
}


def kinds(scheduler: Scheduler) -> set[str]:
    """The kinds of state that there are to take back."""
    found = {"gone"} if scheduler._gone else set()
    if scheduler.backlog.parked:
        found.add("parked")
    if scheduler.kv.prefix.num_idle_blocks:
        found.add("cached")
    for one in scheduler._requests.values():
        found.add(one.state.value)
        if one.num_lost_tokens:
            found.add("preempted")
        if one.is_sheltered:
            found.add("sheltered")
        if UNKNOWN in one.token_ids:
            found.add("unknown")
        if one in scheduler.kv.host._runs:
            found.add("saved")
        if any(scheduler.kv.pool.is_shared(extent) for extent in one.extents):
            found.add("shared")
    return found


def watch(scheduler: Scheduler, seen: set[str]) -> None:
    """Note the kinds of state that are taken back, and check that nothing of them is left."""
    take_back = scheduler.take_back

    def watched() -> None:
        seen.update(kinds(scheduler))
        take_back()
        scheduler.check_integrity()
        assert scheduler.kv.num_free_blocks == len(scheduler.kv.pool.free_blocks) == scheduler.kv.num_blocks
        assert scheduler.kv.prefix.blocks() == (set(), set())
        assert scheduler.kv.host.num_used_slots == 0
        assert scheduler.backlog.by_row == [None] * scheduler.config.max_num_seqs
        victims = scheduler.allocator._victims
        assert not isinstance(victims, BrosVictims) or victims.sheltered is None
        queued = len(scheduler.backlog.prompts._heap) + len(scheduler.backlog.waiting._heap)
        assert queued == len(scheduler._requests), "each request waits exactly once"
        assert kinds(scheduler) <= {State.WAITING.value, "preempted"}

    scheduler.take_back = watched  # type: ignore[method-assign]


def serve_crowd(
    lost: Collection[int], *, ahead: bool, policy: Policy = Policy.BROS
) -> tuple[RestartingRunner, set[str]]:
    """Serve all of `CROWD`, losing the results of these numbers. Returns the kinds of state that were taken back."""
    runner = RestartingRunner(lost, **MEMORY)
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=40, policy=policy)
    arrivals = [(lane, [token_id] * num_prompt, *rest) for lane, token_id, num_prompt, *rest in CROWD]
    return runner, serve(arrivals, runner, scheduler, ahead=ahead)


def serve(
    arrivals: Iterable[Any], runner: RestartingRunner, scheduler: Scheduler, *, ahead: bool
) -> set[str]:
    """Serve requests (lane, prompt, output tokens, steps until the next request, whether it is aborted then) to their
    ends. Returns the kinds of state that were taken back."""
    outputs, seen = Outputs(), set[str]()
    watch(scheduler, seen)
    steps = Steps(scheduler, runner, outputs, ahead=ahead)
    requests: list[tuple[Request, bool]] = []
    for lane, prompt, max_tokens, num_steps, is_aborted in arrivals:
        one = request(prompt, lane=lane, max_tokens=max_tokens, ignore_eos=False)
        requests.append((one, is_aborted))
        scheduler.add(one)
        for _ in range(num_steps):
            steps.step()
            scheduler.check_integrity()
        if is_aborted and (finished := scheduler.abort(one.request_id, 0.0)):
            outputs.hear([finished])
    steps.run_to_end()
    for one, is_aborted in requests:
        check_output(runner, one, outputs, is_aborted=is_aborted)
    assert scheduler.kv.num_free_blocks == scheduler.kv.num_blocks
    return seen


def check_output(runner: RestartingRunner, one: Request, outputs: Outputs, *, is_aborted: bool) -> None:
    """The output is right, and as long as memory allows."""
    expected = runner.runner.continuation(one.token_ids[: one.num_prompt_tokens], one.sampling)
    expected = expected[: one.end_tokens - one.num_prompt_tokens]
    got, reason = outputs.token_ids.get(one.request_id, []), outputs.finished[one.request_id].reason
    if is_aborted and reason is FinishReason.ABORT:
        assert got == expected[: len(got)]
    else:
        assert got == expected
        assert reason in (FinishReason.STOP, FinishReason.LENGTH)


@pytest.mark.parametrize("ahead", [False, True])
def test_whichever_step_is_lost_outputs_are_right(ahead: bool) -> None:
    runner, seen = serve_crowd((), ahead=ahead)
    assert not seen
    for number in range(runner.num_results):
        seen |= serve_crowd({number}, ahead=ahead)[1]
    wanted = {
        "waiting",
        "behind",
        "decoding",
        "preempted",
        "sheltered",
        "shared",
        "saved",
        "parked",
        "cached",
    }
    if ahead:
        wanted |= {"ending", "gone", "unknown"}
    assert wanted <= seen, f"the test means less without {wanted - seen}"


@pytest.mark.parametrize("policy", [Policy.PRIORITY, Policy.FCFS])
@pytest.mark.parametrize("ahead", [False, True])
def test_the_baselines_take_back_requests_too(policy: Policy, ahead: bool) -> None:
    _, seen = serve_crowd(range(5, 100, 20), ahead=ahead, policy=policy)
    assert {"waiting", "decoding"} <= seen


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(Lane), st.integers(1, 40), st.integers(1, 20), st.integers(0, 30), st.booleans()
        ),
        min_size=1,
        max_size=15,
    ),
    st.sets(st.integers(0, 120), max_size=12),
    st.integers(13, 30),
    st.sampled_from([1, 4, 16]),
    st.integers(1, 40),
    st.booleans(),
)
def test_many_losses_at_any_time(arrivals, lost, num_blocks, block_size, budget, is_ahead):
    num_blocks = -(-num_blocks * 5 // block_size)
    runner = RestartingRunner(
        lost,
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=5,
        max_model_len=64,
        mean_output_tokens=8,
    )
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=budget, reserved_rt_rows=2)
    prompts = [(lane, list(range(3, 3 + num_prompt)), *rest) for lane, num_prompt, *rest in arrivals]
    serve(prompts, runner, scheduler, ahead=is_ahead)


def test_a_chat_keeps_its_times_and_its_tokens():
    """Its first token came before the loss: the TTFT does not start again, and no token is sent twice."""
    runner = RestartingRunner({2})
    scheduler, outputs = scheduler_for(runner.info), Outputs()
    one = request(lane=Lane.RT, max_tokens=4, request_id="chat")
    scheduler.add(one)
    steps = Steps(scheduler, runner, outputs)
    for now_s in range(1, 4):
        steps.step(float(now_s))
    assert one.first_token_s == 1.0 and len(outputs.token_ids["chat"]) == 2
    assert one.state is State.WAITING and one.num_tokens == 5
    assert scheduler.rt_load.num_tokens == 5
    for now_s in range(4, 6):
        steps.step(float(now_s))
    assert outputs.token_ids["chat"] == runner.runner.continuation([5, 6, 7], one.sampling)
    finished = outputs.finished["chat"]
    assert (finished.queue_s, finished.ttft_s, finished.e2e_s) == (1.0, 1.0, 5.0)
