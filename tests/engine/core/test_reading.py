"""What requests ask about their prompts is read at every position once, whatever is preempted, shared or lost."""

from __future__ import annotations

import random
from array import array

import pytest

from engine.core.kv.cache import KVOptions
from engine.core.reading import PromptReading
from engine.core.request import Request
from engine.core.terms import FinishReason, Lane, Policy, PromptResult, SamplingParams
from tests.factories import Outputs, RestartingRunner, Steps, request, scheduler_for, simulated_runner

SCORES = SamplingParams(max_tokens=0, score_token_ids=(4, 400, 7))
LOGPROBS = SamplingParams(max_tokens=0, prompt_logprobs=2)
MEAN = SamplingParams(max_tokens=0, pooling="mean")
LAST = SamplingParams(max_tokens=0, pooling="last")
WITH_OUTPUT = SamplingParams(max_tokens=5, prompt_logprobs=0, ignore_eos=True, temperature=0.0)
ALL = SamplingParams(max_tokens=0, score_token_ids=(9,), prompt_logprobs=1, pooling="mean")
KINDS = (SCORES, LOGPROBS, MEAN, LAST, WITH_OUTPUT, ALL)


def totals(result: PromptResult | None) -> tuple[object, ...]:
    """A result with the sum of its hidden states in place of the parts."""
    assert result is not None
    vectors = [array("f", part) for part in result.hidden]
    return result.scores, result.logprobs, [sum(values) for values in zip(*vectors, strict=True)]


def asked(rng: random.Random, prefixes: list[list[int]]) -> Request:
    prompt = rng.choice(prefixes)[: rng.randrange(1, 40)] + [
        rng.randrange(3, 500) for _ in range(rng.randrange(1, 30))
    ]
    lane = rng.choice((Lane.RT, Lane.BE, Lane.BE))
    plain = SamplingParams(max_tokens=rng.randrange(1, 20), ignore_eos=True, temperature=0.0)
    return request(prompt, lane=lane, sampling=rng.choice((*KINDS, plain)), priority=rng.randrange(2))


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("policy", [Policy.BROS, Policy.BROS, Policy.FCFS])
@pytest.mark.parametrize("seed", range(12))
def test_every_position_is_read_once(seed: int, policy: Policy, ahead: bool) -> None:
    rng = random.Random(seed)
    lost = {rng.randrange(60) for _ in range(rng.choice((0, 0, 3)))}
    runner = RestartingRunner(
        lost,
        num_blocks=rng.choice((24, 32, 64)),
        num_host_slots=rng.choice((0, 32)),
        max_num_seqs=rng.choice((3, 8)),
    )
    scheduler = scheduler_for(runner.info, policy=policy, max_num_batched_tokens=rng.choice((7, 32)))
    prefixes = [[rng.randrange(3, 500) for _ in range(40)] for _ in range(2)]
    requests = [asked(rng, prefixes) for _ in range(30)]
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs, ahead=ahead)
    prompts = {each.request_id: list(each.token_ids) for each in requests}
    waiting = list(requests)
    now_s = 0.0
    while waiting:
        for _ in range(rng.randrange(1, 4)):
            if waiting:
                scheduler.add(waiting.pop())
        steps.step(now_s)
        scheduler.check_integrity()
        now_s += 0.01
    steps.run_to_end()
    for each in requests:
        end, prompt = outputs.finished[each.request_id], prompts[each.request_id]
        assert end.reason is FinishReason.LENGTH
        assert end.num_output_tokens == each.sampling.max_tokens
        expected = runner.runner.continuation(prompt, each.sampling)
        assert outputs.token_ids.get(each.request_id, []) == expected
        if each.sampling.asks_about_prompt:
            assert totals(end.prompt) == totals(runner.runner.prompt_result(prompt, each.sampling))
        else:
            assert end.prompt is None


def test_log_probabilities_are_read_although_the_prefix_is_known() -> None:
    runner = simulated_runner()
    scheduler = scheduler_for(runner.info)
    prompt = list(range(3, 33))
    outputs = Outputs()
    for sampling in (SCORES, LOGPROBS, SCORES):
        scheduler.add(request(prompt, sampling=sampling, request_id=str(len(outputs.finished))))
        Steps(scheduler, runner, outputs).run_to_end()
    assert [outputs.finished[str(i)].num_cached_tokens for i in range(3)] == [0, 0, 29]
    for i, sampling in enumerate((SCORES, LOGPROBS, SCORES)):
        assert outputs.finished[str(i)].prompt == runner.prompt_result(prompt, sampling)


def test_the_answer_of_a_chat_without_tokens_is_judged_by_its_ttft() -> None:
    runner = simulated_runner()
    scheduler = scheduler_for(runner.info, options=KVOptions())
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs)
    for arrival_s, took_s in ((0.0, 0.4), (10.0, 1.6)):
        each = request(lane=Lane.RT, sampling=SCORES, arrival_s=arrival_s, request_id=f"{took_s}")
        scheduler.add(each)
        steps.step(arrival_s, took_s)
    in_time, late = outputs.finished["0.4"], outputs.finished["1.6"]
    assert (in_time.slo_met, late.slo_met) == (True, False)
    assert (in_time.ttft_s, in_time.tpot_s) == (0.4, None)
    assert not scheduler.has_work


def test_a_prompt_of_one_token_has_no_log_probabilities() -> None:
    runner = simulated_runner()
    scheduler = scheduler_for(runner.info)
    scheduler.add(request([5], sampling=LOGPROBS, request_id="one"))
    outputs = Outputs()
    Steps(scheduler, runner, outputs).run_to_end()
    assert outputs.finished["one"].prompt == PromptResult(logprobs=b"")


def test_a_prompt_may_fill_the_context_if_no_token_follows() -> None:
    runner = simulated_runner(max_model_len=16)
    scheduler = scheduler_for(runner.info)
    scheduler.add(request(range(3, 19), sampling=SCORES, request_id="full"))
    with pytest.raises(ValueError, match="may have 16"):
        scheduler.add(request(range(3, 19), max_tokens=1))
    outputs = Outputs()
    Steps(scheduler, runner, outputs).run_to_end()
    assert outputs.finished["full"].prompt == runner.prompt_result(list(range(3, 19)), SCORES)


def test_results_that_do_not_come_are_read_again() -> None:
    reading = PromptReading(LOGPROBS, 10)
    assert reading.plan(0, 4) == (0, 4)
    reading.take(simulated_runner()._reading(list(range(3, 13)), 0, [1, 2, 3, 4], LOGPROBS), 4)
    assert reading.plan(4, 8) == (4, 8)
    assert reading.num_skippable_tokens == 8
    reading.lose_planned()
    assert reading.num_skippable_tokens == 4
    assert reading.plan(2, 10) == (4, 9)
    assert reading.num_skippable_tokens is None
