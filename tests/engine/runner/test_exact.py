"""Packed steps over scattered slots draw the same tokens as transformers' `generate`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.core.terms import SamplingParams
from engine.runner.torch_runner import TorchRunner
from tests.engine.runner.driver import GREEDY, Driver, load_runner
from tests.factories_models import FAMILIES, VOCAB_SIZE, generated, make_model, own_model

NUM_OUTPUT = 28
PROMPT_LENGTHS = (1, 5, 16, 33, 50)


def prompts(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in PROMPT_LENGTHS]


def generate(model: Any, prompt: list[int], num_tokens: int = NUM_OUTPUT) -> list[int]:
    """The greedy output of transformers itself, of exactly `num_tokens` tokens."""
    model.generation_config.eos_token_id = None
    return generated(model, prompt, num_tokens)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("mistral", tmp_path_factory.mktemp("mistral"))


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_chunks_and_single_tokens_equal_generate(family: str, tmp_path: Path) -> None:
    path = make_model(family, tmp_path, seed=1)
    driver = Driver(load_runner(path), seed=2)
    sequences = [driver.add(prompt) for prompt in prompts(3)]
    driver.run(NUM_OUTPUT)
    reference = own_model(path)
    for sequence, prompt in zip(sequences, prompts(3), strict=True):
        assert sequence.output == generate(reference, prompt)
    # A model that repeats one token, or gives the same output for every prompt, would test nothing.
    assert len({token for sequence in sequences for token in sequence.output}) > NUM_OUTPUT


def test_a_window_shorter_than_the_prompt_matters(mistral: Path, tmp_path: Path) -> None:
    """Without the window the same weights draw other tokens, so the test above is sensitive to it."""
    prompt = prompts(3)[-1]
    unlimited = make_model("mistral", tmp_path, sliding_window=None)
    assert generate(own_model(mistral), prompt) != generate(own_model(unlimited), prompt)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_request_truncated_anywhere_catches_up_with_the_same_tokens(
    family: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(family)
    driver = Driver(load_runner(path), seed=4)
    sequences = [driver.add(prompt) for prompt in prompts(5)]
    for goal in (8, 15, 21, NUM_OUTPUT):
        driver.run(goal)
        for sequence in sequences:
            driver.truncate(sequence, driver.random.randint(0, len(sequence.slots)))
    reference = own_model(path)
    for sequence, prompt in zip(sequences, prompts(5), strict=True):
        assert sequence.output == generate(reference, prompt)


def test_a_request_reads_a_prefix_that_another_wrote(llama: Path) -> None:
    runner = load_runner(llama)
    driver = Driver(runner, seed=6)
    shared = prompts(7)[-1]
    writer = driver.add(shared)
    driver.run(4)
    reader = driver.add([*shared[:32], 9, 8, 7])
    reader.slots = writer.slots[:32]
    driver.run(NUM_OUTPUT)
    reference = own_model(llama)
    assert reader.output == generate(reference, [*shared[:32], 9, 8, 7])
    assert writer.output == generate(reference, shared)


def test_rows_are_reused_by_shorter_requests(llama: Path) -> None:
    driver = Driver(load_runner(llama, max_num_seqs=2), seed=8)
    reference = own_model(llama)
    for prompt in reversed(prompts(9)):
        sequence = driver.add(prompt, row=0)
        driver.run(12)
        assert sequence.output == generate(reference, prompt, 12)
        sequence.finished = "done"


def test_bfloat16_follows_the_model_in_bfloat16(llama: Path) -> None:
    """Rounding differs, so outputs may diverge; the logits along one output must stay close."""
    runner = load_runner(llama, dtype="bfloat16")
    assert runner.info.dtype == "bfloat16"
    driver = Driver(runner, seed=10)
    sampling = SamplingParams(max_tokens=99, temperature=0.0, ignore_eos=True, logprobs=3)
    sequence = driver.add(prompts(11)[3], sampling)
    driver.run(20)
    reference = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    with torch.inference_mode():
        logits = reference(torch.tensor([sequence.token_ids])).logits[0].float()
    spread = float(logits.std())
    expected = logits.log_softmax(dim=-1)
    for i, logprobs in enumerate(sequence.logprobs):
        position = sequence.num_prompt_tokens + i - 1
        for token, value in logprobs.top:
            assert abs(value - float(expected[position, token])) < 0.15 * spread


def test_logprobs_are_those_of_the_model(llama: Path) -> None:
    driver = Driver(load_runner(llama), seed=12)
    asked = driver.add(
        prompts(13)[2], SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True, logprobs=5)
    )
    driver.add(prompts(13)[3], GREEDY)
    driver.run(9)
    reference = own_model(llama)
    with torch.inference_mode():
        logits = reference(torch.tensor([asked.token_ids])).logits[0].log_softmax(dim=-1)
    assert len(asked.logprobs) == 9
    for i, logprobs in enumerate(asked.logprobs):
        row = logits[asked.num_prompt_tokens + i - 1]
        assert logprobs.logprob == pytest.approx(float(row.max()), abs=1e-3)
        assert [token for token, _ in logprobs.top] == row.topk(5).indices.tolist()


def test_a_seeded_request_draws_the_same_tokens_alone_and_beside_others(llama: Path) -> None:
    sampling = SamplingParams(max_tokens=99, temperature=0.9, top_p=0.95, seed=77, ignore_eos=True)
    prompt = prompts(15)[2]

    def output_of(runner: TorchRunner, companions: int, seed: int) -> list[int]:
        driver = Driver(runner, seed)
        sequence = driver.add(prompt, sampling)
        for other in prompts(17)[:companions]:
            driver.add(other, SamplingParams(max_tokens=99, temperature=1.2, ignore_eos=True))
        driver.run(30)
        return sequence.output

    alone = output_of(load_runner(llama), 0, 1)
    assert output_of(load_runner(llama), 5, 2) == alone
