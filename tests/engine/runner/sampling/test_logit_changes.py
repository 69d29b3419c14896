"""Penalties, logit_bias and min_tokens: changes to single logits, compared with slow references."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from engine.core.terms import SamplingParams
from tests.engine.runner.sampling.bench import (
    VOCAB,
    Bench,
    assert_distributed,
    draw_many,
    params,
    random_logits,
)


def slow_penalties(
    logits: list[float], prompt: list[int], output: list[int], s: SamplingParams
) -> list[float]:
    """Changes one token at a time: repetition as in transformers, presence and frequency as OpenAI documents them."""
    result = list(logits)
    for token in range(len(result)):
        if token in prompt or token in output:
            penalty = s.repetition_penalty
            result[token] = result[token] / penalty if result[token] > 0 else result[token] * penalty
        count = output.count(token)
        result[token] -= count * s.frequency_penalty + (count > 0) * s.presence_penalty
    return result


@pytest.mark.parametrize("seed", range(5))
def test_penalties_equal_the_slow_reference_as_the_output_grows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bench = Bench()
    choices: list[dict[str, Any]] = [
        {"repetition_penalty": 1.5},
        {"frequency_penalty": 0.9},
        {"presence_penalty": 1.1},
        {"repetition_penalty": 0.8, "presence_penalty": -0.5, "frequency_penalty": 0.3},
        {},
    ]
    all_params, prompts = [], []
    for row, fields in enumerate(choices):
        all_params.append(params(**fields, temperature=0.0))
        prompts.append(rng.integers(0, VOCAB, size=8).tolist())
        bench.start(row, all_params[-1], prompts[-1], rng.integers(0, VOCAB, size=row).tolist())
    for step in range(100):  # more distinct tokens than the initial size of a row's arrays
        logits = random_logits(len(choices), seed=1000 * seed + step)
        expected = []
        for row, sampling in enumerate(all_params):
            changed = slow_penalties(logits[row].tolist(), prompts[row], bench.outputs[row], sampling)
            expected.append(max(range(VOCAB), key=changed.__getitem__))
        assert bench.draw(logits, list(range(len(choices))))[0] == expected


def test_repetition_penalty_equals_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    prompt = [3, 4, 5, 5]
    logits = random_logits(1)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), logits.clone())
    assert_distributed(draw_many_with_prompt(logits, prompt), torch.softmax(expected[0], dim=-1))


def draw_many_with_prompt(logits: torch.Tensor, prompt: list[int]) -> Counter[int]:
    bench = Bench(4000)
    for row in range(4000):
        bench.start(row, params(repetition_penalty=1.7, seed=row), prompt)
    return Counter(bench.draw(logits.repeat(4000, 1), list(range(4000)))[0])


def test_logit_bias_adds_and_bans() -> None:
    logits = random_logits(1)[0]
    likeliest = int(logits.argmax())
    expected = logits.clone()
    expected[likeliest] += -100.0
    expected[4] += 3.0
    drawn = draw_many({"logit_bias": ((likeliest, -100.0), (4, 3.0))}, logits, 4000)
    assert_distributed(drawn, torch.softmax(expected, dim=-1))


def test_min_tokens_bans_stop_tokens_until_then() -> None:
    bench = Bench()
    logits = torch.zeros(3, VOCAB)
    logits[:, 2], logits[:, 9], logits[:, 12] = 9.0, 8.0, 7.0  # end of sequence, a stop token, another
    bench.start(0, params(temperature=0.0, min_tokens=2, stop_token_ids=(9,)), [5])
    bench.start(1, params(temperature=0.0, min_tokens=2, ignore_eos=True), [5])
    bench.start(2, params(temperature=0.0), [5])
    for _ in range(3):
        bench.draw(logits, [0, 1, 2])
    assert bench.outputs == {0: [12, 12, 2], 1: [2, 2, 2], 2: [2, 2, 2]}
