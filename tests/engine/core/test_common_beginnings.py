"""Tokens with which several requests begin are computed once: while one computes them, the others wait."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest

from engine.core.kv.cache import KVOptions
from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.core.terms import FinishReason, Lane, Policy, SamplingParams
from engine.runner.base import PendingStep
from engine.runner.simulated import SimulatedRunner
from tests.factories import (
    Outputs,
    RestartingRunner,
    Steps,
    request,
    run_to_end,
    runner_info,
    scheduler_for,
)

BLOCK = 4
SCORES = SamplingParams(max_tokens=0, score_token_ids=(4, 5))


class CountingRunner(SimulatedRunner):
    """Counts the prompt tokens that it computes, and the steps."""

    def __init__(self, **info: int) -> None:
        super().__init__(runner_info(**info))
        self.num_prompt_tokens = self.num_steps = 0
        self._prompt_lengths: dict[int, int] = {}

    def launch(self, plan: StepPlan) -> PendingStep:  # type: ignore[override]
        self.num_steps += bool(plan.rows)
        self._prompt_lengths.update({start.row: start.num_prompt_tokens for start in plan.row_starts})
        for row, start, count in zip(plan.rows, plan.starts, plan.counts, strict=True):
            self.num_prompt_tokens += max(0, min(start + count, self._prompt_lengths[row]) - start)
        return super().launch(plan)


def tokens(rng: random.Random, number: int) -> list[int]:
    return [rng.randrange(3, 500) for _ in range(number)]


def num_distinct(prompts: Iterable[list[int]]) -> int:
    """Number of tokens with different tokens before them."""
    return len({tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)})


def tree_of_prompts(rng: random.Random, num_documents: int) -> list[list[int]]:
    """Prompts of a few documents: each is the whole document or its beginning, and a question."""
    prompts = []
    for _ in range(num_documents):
        document = tokens(rng, rng.randrange(10, 70))
        for _ in range(rng.randrange(1, 7)):
            cut = rng.choice((len(document), len(document), rng.randrange(1, len(document))))
            prompts.append(document[:cut] + tokens(rng, rng.randrange(1, 12)))
    rng.shuffle(prompts)
    return prompts


def assert_right(
    runner: SimulatedRunner, outputs: Outputs, requests: Sequence[Request], prompts: Sequence[list[int]]
) -> None:
    for each, prompt in zip(requests, prompts, strict=True):
        end = outputs.finished[each.request_id]
        assert end.reason in (FinishReason.LENGTH, FinishReason.STOP)
        assert outputs.token_ids.get(each.request_id, []) == runner.continuation(prompt, each.sampling)
        if each.sampling.asks_about_prompt:
            assert end.prompt == runner.prompt_result(prompt, each.sampling)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("seed", range(15))
def test_common_tokens_are_computed_once(seed: int, policy: Policy, ahead: bool) -> None:
    """With enough memory, a request computes no more than its own tokens and parts of two blocks."""
    rng = random.Random(seed)
    runner = CountingRunner(num_blocks=600, max_num_seqs=rng.choice((2, 5, 40)))
    scheduler = scheduler_for(runner.info, policy=policy, max_num_batched_tokens=rng.choice((9, 32, 300)))
    prompts = tree_of_prompts(rng, 4)
    requests = [
        request(
            prompt,
            lane=rng.choice((Lane.RT, Lane.BE)),
            priority=rng.randrange(2),
            sampling=rng.choice((SCORES, None)),
        )
        for prompt in prompts
    ]
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs, ahead=ahead)
    for number, each in enumerate(requests):
        scheduler.add(each)
        if rng.random() < 0.3:
            steps.step(number * 0.001)
            scheduler.check_integrity()
    steps.run_to_end()
    assert_right(runner, outputs, requests, prompts)
    most = num_distinct(prompts) + 2 * BLOCK * len(prompts)
    assert runner.num_prompt_tokens <= most


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize(
    ("budget", "num_tokens", "num_own"), [(48, 600, 20), (700, 603, 20), (8192, 602, 20), (8192, 601, 2)]
)
def test_eight_questions_read_their_document_once(
    budget: int, num_tokens: int, num_own: int, lane: Lane, ahead: bool
) -> None:
    """Also where the document ends within a block, and where no question is long enough to fill that block."""
    rng = random.Random(budget)
    info = {"num_blocks": 2000, "max_num_seqs": 16, "max_model_len": 700}
    runner = CountingRunner(**info)
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=budget)
    document = tokens(rng, num_tokens)
    prompts = [document + tokens(rng, num_own) for _ in range(8)]
    requests = [request(prompt, lane=lane, sampling=SCORES) for prompt in prompts]
    for each in requests:
        scheduler.add(each)
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs, ahead=ahead)
    while len(outputs.finished) < len(requests):
        assert steps.step() or ahead, "a step computed nothing"
    assert_right(runner, outputs, requests, prompts)
    assert runner.num_prompt_tokens == num_tokens + 8 * num_own
    cached = sorted(outputs.finished[each.request_id].num_cached_tokens for each in requests)
    assert cached == [0] + [num_tokens] * 7


def test_requests_that_do_not_share_it_do_not_wait() -> None:
    runner = CountingRunner(num_blocks=200)
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=300)
    rng = random.Random(1)
    document = tokens(rng, 40)
    for prompt in ([*document, 5], [*document, 6], tokens(rng, 40)):
        scheduler.add(request(prompt, sampling=SCORES))
    first, second = scheduler.schedule(0.0), scheduler.schedule(0.1)
    assert first.counts == [41, 40]
    assert second.counts == [1]


def test_a_chat_without_time_to_wait_computes_what_another_computes() -> None:
    """The other chat takes all of the time that is left for the first token."""
    rng = random.Random(1)
    document = tokens(rng, 40)
    for arrival_s, counts in ((0.0, [41]), (-0.85, [41, 41])):
        runner = CountingRunner(num_blocks=200)
        scheduler = scheduler_for(runner.info, max_num_batched_tokens=300)
        scheduler.add(request([*document, 5], lane=Lane.RT, arrival_s=arrival_s))
        scheduler.add(request([*document, 6], lane=Lane.RT, arrival_s=arrival_s))
        assert scheduler.schedule(0.0).counts == counts


def test_chats_that_are_late_compute_what_they_share_once() -> None:
    """There is no first token in time to be lost by waiting, and all would be later."""
    rng = random.Random(3)
    documents = [tokens(rng, 40) for _ in range(3)]
    prompts = [[*document, question] for document in documents for question in (5, 6, 7)]
    runner = CountingRunner(num_blocks=200, max_num_seqs=16)
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=90)
    requests = [request(prompt, lane=Lane.RT, arrival_s=-9.0, sampling=SCORES) for prompt in prompts]
    for each in requests:
        scheduler.add(each)
    assert scheduler.schedule(0.0).counts == [41, 41, 8]
    scheduler.take_back()
    outputs = run_to_end(scheduler, runner)
    assert_right(runner, outputs, requests, prompts)
    assert runner.num_prompt_tokens == num_distinct(prompts)


def test_a_chat_does_not_wait_for_bulk_and_bulk_takes_over_what_it_computes() -> None:
    rng = random.Random(2)
    document = tokens(rng, 80)
    prompts = [document + tokens(rng, 3) for _ in range(2)]
    runner = CountingRunner(num_blocks=200)
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=30)
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs)
    bulk = request(prompts[0], sampling=SCORES)
    scheduler.add(bulk)
    steps.step()
    chat = request(prompts[1], lane=Lane.RT)
    scheduler.add(chat)
    plan = scheduler.schedule(0.0)
    assert plan.rows[0] == chat.row
    assert plan.starts[0] == 28, "it takes over the 7 blocks of bulk"
    steps.outputs.hear(scheduler.update(plan, runner.execute(plan), 0.0))
    steps.run_to_end()
    assert_right(runner, outputs, [bulk, chat], prompts)
    assert runner.num_prompt_tokens <= num_distinct(prompts) + 2 * BLOCK


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("policy", [Policy.BROS, Policy.BROS, Policy.PRIORITY])
@pytest.mark.parametrize("seed", range(25))
def test_nobody_waits_forever(seed: int, policy: Policy, ahead: bool) -> None:
    """Whoever computes for others may be preempted, aborted, be a suspect, or lose all to a restart."""
    rng = random.Random(seed)
    lost = {rng.randrange(80) for _ in range(rng.choice((0, 3)))}
    runner = RestartingRunner(
        lost,
        num_blocks=rng.choice((32, 40, 64)),
        num_host_slots=rng.choice((0, 32)),
        max_num_seqs=rng.choice((3, 8)),
    )
    options = KVOptions(num_host_slots=runner.info.num_host_slots, sharing=rng.random() < 0.8)
    budget = rng.choice((7, 32, 128))
    scheduler = scheduler_for(runner.info, policy=policy, max_num_batched_tokens=budget, options=options)
    prompts = [prompt for _ in range(4) for prompt in tree_of_prompts(rng, 3)]
    requests = [
        request(
            prompt,
            lane=rng.choice((Lane.RT, Lane.BE, Lane.BE)),
            priority=rng.randrange(3),
            sampling=rng.choice((SCORES, None)),
        )
        for prompt in prompts
    ]
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs, ahead=ahead)
    aborted = set()
    for number, each in enumerate(requests):
        each.is_suspect = rng.random() < 0.1
        scheduler.add(each)
        if rng.random() < 0.6:
            steps.step(number * 0.01)
            scheduler.check_integrity()
        if rng.random() < 0.15:
            victim = rng.choice(requests[: number + 1]).request_id
            if (end := scheduler.abort(victim, number * 0.01)) is not None:
                outputs.hear([end])
                aborted.add(victim)
    steps.run_to_end()
    kept = [i for i, each in enumerate(requests) if each.request_id not in aborted]
    assert_right(runner.runner, outputs, [requests[i] for i in kept], [prompts[i] for i in kept])
