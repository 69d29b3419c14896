"""Sampling parameters of any value: the engine rejects them, or computes them and the output of others stays the same.

The step is that of the torch runner with a tiny model, so whatever the sampler cannot compute with raises here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings

from engine.core.terms import FinishReason, Grammar, SamplingParams, TokenLogprobs
from engine.lanes.translation import sampling_params
from engine.runner.model.loading import load_model
from engine.runner.torch_runner import TorchRunner
from engine.wire.json_schemas import compilable_text
from engine.wire.limits import SAMPLING_RANGES, ModelLimits
from engine.wire.request_problems import problem_with
from engine.wire.request_terms import Sampling
from engine.wire.sampling_problems import sampling_problem
from engine.wire.schema_keywords import UnusableSchema
from tests.engine.runner.driver import Driver, load_runner
from tests.factories import Outputs, Steps, request, scheduler_for
from tests.factories_models import VOCAB_SIZE, make_model, make_tokenizer
from tests.samplings import samplings, sent

LIMITS = ModelLimits(max_model_len=256, vocab_size=VOCAB_SIZE)
NUM_STEPS = 5
# One neighbor of each kind, in the rows around the one that may have any parameters.
NEIGHBORS = [
    SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True, logprobs=5),
    SamplingParams(max_tokens=100, temperature=0.8, top_p=0.9, top_k=50, min_p=0.01, seed=7, logprobs=0),
    SamplingParams(max_tokens=100, temperature=1.0, seed=3, frequency_penalty=0.5, repetition_penalty=1.2, logprobs=20),
    SamplingParams(
        max_tokens=100, seed=5, min_tokens=3, stop=("e",), stop_token_ids=(9,), logit_bias=((7, 5.0), (300, -100.0)),
        logprobs=1,
    ),
]  # fmt: skip
HARMLESS = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True)
class Beside:
    """What the neighbors got: their tokens and their log-probabilities."""

    tokens: list[list[int]]
    logprobs: list[list[TokenLogprobs]]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchRunner]:
    path: Path = make_model("llama", tmp_path_factory.mktemp("model"))
    make_tokenizer(path)
    runner = load_runner(path)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def beside_harmless(runner: TorchRunner) -> Beside:
    return beside(runner, HARMLESS)


def compiled(runner: TorchRunner, grammar: Grammar) -> Grammar | None:
    """The grammar as the lanes pass it on, or None if it cannot be used. Raises UnusableSchema."""
    if grammar.kind == "json_schema":
        grammar = dataclasses.replace(grammar, text=compilable_text(grammar.text))
    return grammar if runner.grammars.begin(grammar).result() is None else None


def beside(runner: TorchRunner, sampling: SamplingParams) -> Beside:
    """Compute steps of five rows, the one in the middle with `sampling`; all steps have the same shape."""
    driver = Driver(runner)
    rows = [driver.add([5, 6, 7 + i], params, row=i) for i, params in enumerate(NEIGHBORS)]
    odd = driver.add([5, 6, 7], sampling, row=len(NEIGHBORS))
    order = [*rows[:2], odd, *rows[2:]]
    driver.step([(each, 3) for each in order])
    for _ in range(NUM_STEPS):
        driver.step([(each, 1) for each in order])
    assert odd.finished in (None, "stop"), "a request that was admitted fails in a step"
    return Beside([each.output for each in rows], [each.logprobs for each in rows])


def assert_runs_to_its_end(runner: TorchRunner, sampling: SamplingParams) -> None:
    """The request ends as requests do, after a row of any other request and beside one."""
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=64)
    scheduler.max_request_tokens = 24
    odd, other = request(sampling=sampling), request(max_tokens=4)
    scheduler.add(odd)
    scheduler.add(other)
    outputs = Outputs()
    Steps(scheduler, runner, outputs).run_to_end(200)
    end, token_ids = outputs.finished[odd.request_id], outputs.token_ids.get(odd.request_id, [])
    assert end.reason in (FinishReason.STOP, FinishReason.LENGTH)
    assert min(1, sampling.max_tokens) <= len(token_ids) <= min(sampling.max_tokens, 24 - 3)
    assert all(0 <= token_id < VOCAB_SIZE for token_id in token_ids)
    if end.reason is FinishReason.STOP:
        assert len(token_ids) >= sampling.min_tokens or sampling.grammar is not None
    assert outputs.finished[other.request_id].reason is FinishReason.LENGTH


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=samplings(VOCAB_SIZE))
@example(drawn=Sampling(max_tokens=2, min_tokens=1, stop_token_ids=(151_645,)))
@example(drawn=Sampling(max_tokens=2, temperature=1e-50))
@example(drawn=Sampling(max_tokens=2, top_p=5e-324, min_p=5e-324, top_k=2**31 - 1))
@example(drawn=Sampling(max_tokens=2, logit_bias=((VOCAB_SIZE + 5, 100.0),)))
@example(drawn=Sampling(max_tokens=2**63, min_tokens=2**63))
@example(drawn=Sampling(max_tokens=6, min_tokens=6, stop_token_ids=tuple(range(VOCAB_SIZE))))
@example(drawn=Sampling(max_tokens=6, repetition_penalty=1e-38, temperature=1e-5))
@example(drawn=Sampling(max_tokens=6, temperature=100.0, min_tokens=6, stop_token_ids=(4, 5)))
def test_any_sampling_is_rejected_or_leaves_other_rows_as_they_are(
    runner: TorchRunner, beside_harmless: Beside, drawn: Sampling
) -> None:
    arrived = sent(drawn)
    if arrived is None:
        return  # the client raises, or the engine rejects the frame by its id
    problem = problem_with([5, 6, 7], arrived, LIMITS)
    if problem is not None:
        assert problem.param in Sampling.__struct_fields__
        assert problem.param in problem.message
        return
    params = sampling_params(arrived)
    if params.grammar is not None:
        try:
            grammar = compiled(runner, params.grammar)
        except UnusableSchema:
            return
        if grammar is None:
            return
        params = dataclasses.replace(params, grammar=grammar)
    assert beside(runner, params) == beside_harmless
    assert_runs_to_its_end(runner, params)


@pytest.mark.parametrize("name", sorted(SAMPLING_RANGES))
def test_a_number_outside_its_range_is_named(name: str) -> None:
    least, most = SAMPLING_RANGES[name]
    valid = Sampling(max_tokens=8)
    for value in (least - 1, most + 1, float("nan"), float("inf"), float("-inf"), 1e308, -(10**30)):
        problem = sampling_problem(msgspec.structs.replace(valid, **{name: value}), LIMITS)
        assert problem is not None
        assert (problem.code, problem.param) == ("invalid_request", name)
        assert problem.message.startswith(f"'{name}' must be from ")


def test_every_number_of_sampling_has_a_range() -> None:
    numbers = {
        field.name
        for field in msgspec.structs.fields(Sampling)
        if field.type in (int, float, int | None, float | None)
    }
    assert numbers == set(SAMPLING_RANGES)


def test_an_end_token_without_a_logit_is_left_out(tmp_path: Path) -> None:
    """Some configurations name one; min_tokens would otherwise suppress a logit of another row."""
    path = make_model("llama", tmp_path, eos_token_id=[2, VOCAB_SIZE + 9, -1])
    model = load_model(str(path), device="cpu")
    assert model.eos_token_ids == {2}
