"""The scheduler on the simulated runner, whose outputs are wrong if a slot, a token or an order is wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.config import SchedulerConfig
from engine.core.terms import FinishReason, Lane, SamplingParams
from tests.factories import (
    Outputs,
    Steps,
    request,
    run_to_end,
    runner_info,
    scheduler_for,
    simulated_runner,
    step,
)


def test_outputs_are_those_of_each_request_alone():
    runner = simulated_runner(mean_output_tokens=6)
    scheduler = scheduler_for(runner.info)
    requests = [
        request(list(range(3, 3 + n)), lane=lane, max_tokens=20, ignore_eos=n % 2 == 0)
        for n in range(1, 40, 3)
        for lane in Lane
    ]
    for r in requests:
        scheduler.add(r)
    outputs = run_to_end(scheduler, runner)
    for r in requests:
        expected = runner.continuation(r.token_ids[: r.num_prompt_tokens], r.sampling)
        assert outputs.token_ids[r.request_id] == expected
        reason = outputs.finished[r.request_id].reason
        assert reason is (FinishReason.LENGTH if len(expected) == 20 else FinishReason.STOP)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(Lane), st.integers(1, 40), st.integers(1, 20), st.integers(0, 30), st.booleans()
        ),
        min_size=1,
        max_size=25,
    ),
    st.integers(13, 30),
    st.sampled_from([1, 4, 16]),
    st.integers(1, 40),
    st.booleans(),
)
def test_scarce_memory_changes_no_output_and_every_request_ends(
    arrivals, num_blocks, block_size, budget, is_ahead
):
    """Requests arrive at random steps, some are aborted, and memory holds a few at a time."""
    num_blocks = -(-num_blocks * 5 // block_size)
    runner = simulated_runner(
        num_blocks=num_blocks, block_size=block_size, max_num_seqs=5, max_model_len=64, mean_output_tokens=8
    )
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=budget, reserved_rt_rows=2)
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs, ahead=is_ahead)
    requests = []
    for lane, num_prompt, max_tokens, num_steps, aborted in arrivals:
        r = request(list(range(3, 3 + num_prompt)), lane=lane, max_tokens=max_tokens, ignore_eos=False)
        requests.append((r, aborted))
        scheduler.add(r)
        for _ in range(num_steps):
            steps.step()
            scheduler.check_integrity()
        if aborted:
            finished = scheduler.abort(r.request_id, 0.0)
            outputs.hear([finished] if finished else [])
            scheduler.check_integrity()
    steps.run_to_end()
    for r, aborted in requests:
        expected = runner.continuation(r.token_ids[: r.num_prompt_tokens], r.sampling)
        got = outputs.token_ids.get(r.request_id, [])
        if aborted and outputs.finished[r.request_id].reason is FinishReason.ABORT:
            assert got == expected[: len(got)]
        else:
            assert got == expected
    assert scheduler.kv.num_free_blocks == num_blocks


def test_rt_does_not_wait_for_rows_when_be_uses_all_of_them():
    runner = simulated_runner(max_num_seqs=4, num_blocks=100)
    scheduler = scheduler_for(runner.info, reserved_rt_rows=1)
    for _ in range(10):
        scheduler.add(request(max_tokens=50))
    outputs = Outputs()
    for _ in range(3):
        step(scheduler, runner, outputs)
    assert scheduler.num_requests(Lane.BE) == (3, 7), "one row is reserved"
    for _ in range(2):
        scheduler.add(request(lane=Lane.RT, max_tokens=50))
    step(scheduler, runner, outputs)
    assert scheduler.num_requests(Lane.RT) == (2, 0), "the second displaces a BE row"
    assert scheduler.num_requests(Lane.BE) == (2, 8)
    run_to_end(scheduler, runner, outputs)
    assert len(outputs.finished) == 12


def test_rt_takes_memory_from_the_youngest_be_and_only_a_suffix():
    runner = simulated_runner(num_blocks=10, block_size=4)
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=100)
    old, young = request(range(3, 20), max_tokens=10), request(range(4, 21), max_tokens=10)
    scheduler.add(old)
    outputs = Outputs()
    step(scheduler, runner, outputs)
    scheduler.add(young)
    step(scheduler, runner, outputs)
    scheduler.add(request(range(30, 38), lane=Lane.RT, max_tokens=3))
    plan = scheduler.schedule(0.0)
    assert plan.counts[0] == 8 and plan.row_starts[0].num_prompt_tokens == 8, "RT is in at once"
    assert 0 < young.num_computed_tokens < 17, "the youngest lost a suffix"
    assert old.num_computed_tokens == 19, "the older one lost nothing, and gets one more"
    outputs.hear(scheduler.update(plan, runner.execute(plan), 0.0))
    run_to_end(scheduler, runner, outputs)
    assert scheduler.allocator.num_preemptions >= 1
    for r in (old, young):
        expected = runner.continuation(r.token_ids[:17], r.sampling)
        assert outputs.token_ids[r.request_id] == expected


def test_be_is_admitted_by_priority_then_age():
    runner = simulated_runner(max_num_seqs=2)
    scheduler = scheduler_for(runner.info, reserved_rt_rows=1)
    requests = [request(max_tokens=1, priority=p, request_id=f"p{i}") for i, p in enumerate([0, 5, 1, 5])]
    for r in requests:
        scheduler.add(r)
    outputs = run_to_end(scheduler, runner)
    assert list(outputs.finished) == ["p1", "p3", "p2", "p0"]


def test_a_request_that_can_never_be_served_is_rejected_with_the_reason():
    scheduler = scheduler_for(runner_info(num_blocks=4, block_size=4, max_model_len=100))
    with pytest.raises(ValueError, match="has 16 tokens, but prompt and output together may have 16"):
        scheduler.add(request(range(3, 19)))
    with pytest.raises(ValueError, match="empty"):
        scheduler.add(request([]))
    scheduler.add(request(request_id="twice"))
    with pytest.raises(ValueError, match="'twice' is in use"):
        scheduler.add(request(request_id="twice"))


def test_output_ends_at_the_model_length():
    runner = simulated_runner(max_model_len=12, block_size=4)
    scheduler = scheduler_for(runner.info)
    scheduler.add(request(range(3, 11), max_tokens=100, request_id="long"))
    outputs = run_to_end(scheduler, runner)
    assert len(outputs.token_ids["long"]) == 4
    assert outputs.finished["long"].reason is FinishReason.LENGTH


def test_abort_frees_everything_at_any_stage():
    runner = simulated_runner(max_num_seqs=2)
    scheduler = scheduler_for(runner.info, reserved_rt_rows=1)
    running, waiting = request(request_id="running"), request(request_id="waiting")
    scheduler.add(running)
    scheduler.add(waiting)
    step(scheduler, runner, Outputs())
    for request_id in ("waiting", "running"):
        finished = scheduler.abort(request_id, 1.0)
        assert finished is not None and finished.reason is FinishReason.ABORT
        scheduler.check_integrity()
    assert scheduler.abort("running", 1.0) is None
    assert not scheduler.has_work
    assert scheduler.kv.num_free_blocks == runner.info.num_blocks


def test_an_id_may_be_used_again_after_an_abort():
    runner = simulated_runner()
    scheduler = scheduler_for(runner.info)
    scheduler.add(request([5], request_id="again"))
    scheduler.abort("again", 0.0)
    successor = request([6, 7], request_id="again")
    scheduler.add(successor)
    outputs = run_to_end(scheduler, runner)
    assert outputs.token_ids["again"] == runner.continuation([6, 7], successor.sampling)


def test_the_times_of_events_are_those_of_the_steps():
    runner = simulated_runner()
    scheduler = scheduler_for(runner.info)
    scheduler.add(request(lane=Lane.RT, max_tokens=3, arrival_s=1.0, request_id="r"))
    outputs = Outputs()
    for now_s in (2.0, 2.5, 3.5):
        step(scheduler, runner, outputs, now_s)
    finished = outputs.finished["r"]
    assert (finished.queue_s, finished.ttft_s, finished.tpot_s, finished.e2e_s) == (1.0, 1.0, 0.75, 2.5)


def test_reserved_rows_must_leave_be_at_least_one_row():
    with pytest.raises(ValueError, match="reserved_rt_rows"):
        SchedulerConfig(max_num_seqs=4, max_model_len=8, max_num_batched_tokens=8, reserved_rt_rows=4)


def test_output_has_at_least_min_tokens():
    runner = simulated_runner(mean_output_tokens=2)
    scheduler = scheduler_for(runner.info)
    sampling = SamplingParams(max_tokens=30, min_tokens=12)
    scheduler.add(request(sampling=sampling, request_id="r"))
    outputs = run_to_end(scheduler, runner)
    assert 12 < len(outputs.token_ids["r"]) <= 30
