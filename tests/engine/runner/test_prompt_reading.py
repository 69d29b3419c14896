"""Scores, log-probabilities of prompts and embeddings equal those of transformers in float32."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.core.terms import FinishReason, Lane, PromptResult, SamplingParams
from engine.runner import prompt_reader
from engine.runner.base import ModelRunner
from engine.runner.torch_runner import TorchRunner
from engine.wire.request_terms import PromptLogprobs
from tests.engine.runner.driver import load_runner
from tests.factories import Outputs, Steps, request, scheduler_for
from tests.factories_models import FAMILIES, VOCAB_SIZE, generated, make_model, own_model

SCORES = SamplingParams(max_tokens=0, score_token_ids=(4, 300, 7))
LOGPROBS = SamplingParams(max_tokens=0, prompt_logprobs=3)
MEAN = SamplingParams(max_tokens=0, pooling="mean")
LAST = SamplingParams(max_tokens=0, pooling="last")
ALL = SamplingParams(max_tokens=0, score_token_ids=(9,), prompt_logprobs=0, pooling="last")
WITH_OUTPUT = SamplingParams(max_tokens=9, prompt_logprobs=1, temperature=0.0, ignore_eos=True)
PLAIN = SamplingParams(max_tokens=14, temperature=0.0, ignore_eos=True)
KINDS = (SCORES, LOGPROBS, MEAN, LAST, ALL, WITH_OUTPUT, PLAIN)
# Of embeddings: how far they may be from those of transformers, relative to their length. Experts amplify rounding.
TOLERANCE, TOLERANCE_OF_EXPERTS = 1e-5, 5e-5
SMALL = {"block_size": 4, "num_kv_blocks": 20, "num_host_slots": 24, "max_num_seqs": 6, "max_model_len": 96}


@dataclass(frozen=True)
class Own:
    """What transformers computes for a prompt."""

    logprobs: torch.Tensor  # [n, V] float64
    hidden: torch.Tensor  # [n, H]

    @staticmethod
    def of(model: Any, prompt: list[int]) -> Own:
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            logits = model(input_ids=ids).logits[0]
            return Own(logits.double().log_softmax(-1), model.base_model(input_ids=ids).last_hidden_state[0])


def vector(result: PromptResult, num_tokens: int) -> np.ndarray[Any, Any]:
    total = np.sum([np.frombuffer(part, dtype="<f4") for part in result.hidden], axis=0)
    return total / num_tokens


def assert_equal(
    result: PromptResult | None,
    sampling: SamplingParams,
    prompt: list[int],
    own: Own,
    tolerance: float = TOLERANCE,
) -> None:
    assert result is not None
    if sampling.score_token_ids:
        expected = own.logprobs[-1, list(sampling.score_token_ids)]
        assert result.scores == pytest.approx(expected.tolist(), abs=1e-4)
    else:
        assert result.scores is None
    if sampling.prompt_logprobs is not None:
        assert result.logprobs is not None
        logprobs = list(PromptLogprobs(sampling.prompt_logprobs, result.logprobs).positions())
        assert len(logprobs) == len(prompt) - 1
        for position, found in enumerate(logprobs):
            row = own.logprobs[position]
            assert found.logprob == pytest.approx(float(row[prompt[position + 1]]), abs=1e-4)
            likeliest = row.topk(sampling.prompt_logprobs).values.tolist()
            assert [value for _, value in found.top] == pytest.approx(likeliest, abs=1e-4)
            assert [float(row[i]) for i, _ in found.top] == pytest.approx(likeliest, abs=1e-4)
    else:
        assert result.logprobs is None
    if sampling.pooling is None:
        assert result.hidden == ()
    else:
        expected = own.hidden.mean(0) if sampling.pooling == "mean" else own.hidden[-1]
        found = vector(result, len(prompt) if sampling.pooling == "mean" else 1)
        assert np.linalg.norm(found - expected.numpy()) <= tolerance * float(expected.norm())


def loads(seed: int) -> list[Request]:
    """Requests of all kinds, many of which begin alike, in both lanes."""
    rng = random.Random(seed)
    prefix = [rng.randrange(3, VOCAB_SIZE) for _ in range(30)]
    requests = []
    for kind in (*KINDS, *KINDS, *KINDS):
        own = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randrange(1, 36))]
        prompt = prefix[: rng.choice((0, 9, 30))] + own
        requests.append(request(prompt, lane=rng.choice((Lane.RT, Lane.BE, Lane.BE)), sampling=kind))
    rng.shuffle(requests)
    return sorted(requests, key=lambda each: each.lane is Lane.RT and rng.random() < 0.7)


def answers(runner: ModelRunner, requests: list[Request], *, ahead: bool) -> tuple[Outputs, int]:
    """Compute the requests, which arrive one per step, in little memory; also returns the number of preemptions."""
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=13)
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs, ahead=ahead)
    for each in requests:
        scheduler.add(each)
        steps.step()
        scheduler.check_integrity()
    steps.run_to_end()
    return outputs, scheduler.allocator.num_preemptions


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_those_of_transformers(family: str, ahead: bool, tmp_path: Path) -> None:
    path = make_model(family, tmp_path, seed=1)
    runner, reference = load_runner(path, **SMALL), own_model(path)
    reference.generation_config.eos_token_id = None
    tolerance = TOLERANCE_OF_EXPERTS if "num_local_experts" in FAMILIES[family] else TOLERANCE
    requests = loads(seed=5)
    prompts = {each.request_id: list(each.token_ids) for each in requests}
    outputs, num_preemptions = answers(runner, requests, ahead=ahead)
    assert num_preemptions > 3, "memory is not scarce enough for this test"
    for each in requests:
        prompt, end = prompts[each.request_id], outputs.finished[each.request_id]
        assert end.reason is FinishReason.LENGTH
        if each.sampling.asks_about_prompt:
            assert_equal(end.prompt, each.sampling, prompt, Own.of(reference, prompt), tolerance)
        if each.sampling.max_tokens:
            expected = generated(reference, prompt, each.sampling.max_tokens)
            assert outputs.token_ids[each.request_id] == expected
    runner.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("model"), seed=2)


@pytest.fixture(scope="module")
def runner(model: Path) -> Iterator[TorchRunner]:
    runner = load_runner(model)
    yield runner
    runner.close()


def test_logits_are_computed_in_slices(
    runner: TorchRunner, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    logits = type(runner._model).logits

    def counted(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(type(runner._model), "logits", counted)
    monkeypatch.setattr(prompt_reader, "SLICE_BYTES", 4 * VOCAB_SIZE * 5)
    prompt = [random.Random(1).randrange(3, VOCAB_SIZE) for _ in range(32)]
    scheduler, outputs = scheduler_for(runner.info, max_num_batched_tokens=64), Outputs()
    scheduler.add(request(prompt, sampling=LOGPROBS, request_id="sliced"))
    Steps(scheduler, runner, outputs).run_to_end()
    assert max(rows) == 5
    assert_equal(outputs.finished["sliced"].prompt, LOGPROBS, prompt, Own.of(own_model(model), prompt))


def test_an_error_in_one_reading_fails_no_other_request(
    runner: TorchRunner, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is computed in parts, and what is read twice counts once."""
    read = prompt_reader.PromptReader.read

    def failing(self: Any, hidden: torch.Tensor, readings: list[Any], logits: Any) -> Any:
        if any(reading.end == 11 for reading in readings):
            raise RuntimeError("a reader that fails")
        return read(self, hidden, readings, logits)

    monkeypatch.setattr(prompt_reader.PromptReader, "read", failing)
    rng = random.Random(3)
    prompts = [[rng.randrange(3, VOCAB_SIZE) for _ in range(n)] for n in (9, 11, 14, 17)]
    scheduler, outputs = scheduler_for(runner.info, max_num_batched_tokens=128), Outputs()
    for prompt, sampling in zip(prompts, (ALL, SCORES, MEAN, PLAIN), strict=True):
        scheduler.add(request(prompt, sampling=sampling, request_id=str(len(prompt))))
    Steps(scheduler, runner, outputs).run_to_end()
    assert outputs.finished["11"].reason is FinishReason.ERROR
    assert "a reader that fails" in (outputs.finished["11"].message or "")
    reference = own_model(model)
    assert_equal(outputs.finished["9"].prompt, ALL, prompts[0], Own.of(reference, prompts[0]))
    assert_equal(outputs.finished["14"].prompt, MEAN, prompts[2], Own.of(reference, prompts[2]))
    reference.generation_config.eos_token_id = None
    assert outputs.token_ids["17"] == generated(reference, prompts[3], PLAIN.max_tokens)


def test_a_step_that_is_computed_in_halves_reads_every_position_once(
    runner: TorchRunner, model: Path
) -> None:
    rng = random.Random(4)
    prompts = [[rng.randrange(3, VOCAB_SIZE) for _ in range(n)] for n in (19, 23, 21)]
    scheduler, outputs = scheduler_for(runner.info, max_num_batched_tokens=128), Outputs()
    for prompt, sampling in zip(prompts, (ALL, LOGPROBS, MEAN), strict=True):
        scheduler.add(request(prompt, sampling=sampling, request_id=str(len(prompt))))
    runner.limit_passes(8)
    try:
        Steps(scheduler, runner, outputs).run_to_end()
    finally:
        runner.limit_passes(1 << 62)
    for prompt, sampling in zip(prompts, (ALL, LOGPROBS, MEAN), strict=True):
        result = outputs.finished[str(len(prompt))].prompt
        assert_equal(result, sampling, prompt, Own.of(own_model(model), prompt))


def test_a_token_outside_of_the_vocabulary_fails_its_request(runner: TorchRunner) -> None:
    scheduler, outputs = scheduler_for(runner.info), Outputs()
    odd = SamplingParams(max_tokens=0, score_token_ids=(4, VOCAB_SIZE))
    scheduler.add(request(sampling=odd, request_id="odd"))
    scheduler.add(request(sampling=SCORES, request_id="other"))
    Steps(scheduler, runner, outputs).run_to_end()
    assert outputs.finished["odd"].reason is FinishReason.ERROR
    assert "score_token_ids" in (outputs.finished["odd"].message or "")
    assert outputs.finished["other"].prompt is not None


def test_a_model_without_hidden_states_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("its head is unusual")

    monkeypatch.setattr("engine.runner.model.loading.check_hidden", broken)
    runner = load_runner(model)
    assert runner.info.hidden_size == 0
    scheduler, outputs = scheduler_for(runner.info), Outputs()
    scheduler.add(request(sampling=SCORES, request_id="asks"))
    scheduler.add(request(sampling=PLAIN, request_id="plain"))
    Steps(scheduler, runner, outputs).run_to_end()
    assert "hidden states cannot be read" in (outputs.finished["asks"].message or "")
    assert outputs.finished["plain"].reason is FinishReason.LENGTH
    runner.close()


def test_a_plan_names_what_each_row_reads() -> None:
    plan = StepPlan([0, 1], [0, 4], [2, 3], [False, False], [1] * 5, [1] * 5, reads={1: (5, 7)})
    assert plan.only(1).reads == {0: (5, 7)}
    assert plan.without({1}).reads == {}
