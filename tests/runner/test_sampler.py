"""Each sampling parameter alone, and that rows do not feel one another."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from engine.core.plan import RowStart
from engine.core.types import SamplingParams, TokenLogprobs
from engine.runner.sampler import Sampler, top_k_top_p_threshold
from engine.runner.sampling_rows import SamplingRows

EOS = frozenset({2})
VOCAB = 40


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 100, "seed": 0, **fields})


def random_logits(num_rows: int, vocab_size: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))


class Bench:
    """A sampler and the requests in its rows."""

    def __init__(self, num_rows: int = 16) -> None:
        self.rows = SamplingRows(num_rows, EOS, seed=1)
        self.sampler = Sampler(self.rows)
        self.outputs: dict[int, list[int]] = {}

    def start(
        self, row: int, sampling: SamplingParams, prompt: list[int], output: list[int] | None = None
    ) -> None:
        output = list(output or [])
        self.rows.start(RowStart(row, f"r{row}", prompt + output, len(prompt), [], sampling))
        self.outputs[row] = output

    def draw(self, logits: torch.Tensor, rows: list[int]) -> tuple[list[int], dict[int, TokenLogprobs]]:
        num_outputs = np.array([len(self.outputs[row]) for row in rows])
        tokens, logprobs = self.sampler.draw(logits.clone(), np.array(rows), num_outputs)
        for row, token in zip(rows, tokens, strict=True):
            self.outputs[row].append(token)
        return tokens, logprobs


def draw_many(sampling: dict[str, Any], logits: torch.Tensor, times: int) -> Counter[int]:
    """How often each token comes when `times` seeds draw from the same logits [V]."""
    bench = Bench(times)
    for row in range(times):
        bench.start(row, params(**sampling, seed=row), [5])
    tokens, _ = bench.draw(logits.repeat(times, 1), list(range(times)))
    return Counter(tokens)


def assert_distributed(drawn: Counter[int], expected: torch.Tensor) -> None:
    """Every token within five standard deviations of its probability; impossible ones never."""
    times = drawn.total()
    assert set(drawn) <= set(torch.nonzero(expected).flatten().tolist())
    for token, p in enumerate(expected.tolist()):
        assert abs(drawn[token] - times * p) <= 5 * math.sqrt(times * p * (1 - p)) + 1e-9


def kept_only(logits: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits.masked_fill(~keep, -torch.inf), dim=-1)


def test_temperature_zero_is_the_likeliest_token_the_first_among_equals() -> None:
    bench = Bench()
    logits = random_logits(4)
    logits[1, [7, 30]] = 50.0
    for row in range(4):
        bench.start(row, params(temperature=0.0), [5])
    assert bench.draw(logits, [0, 1, 2, 3])[0] == logits.argmax(-1).tolist()
    assert bench.outputs[1] == [7]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_scales_the_distribution(temperature: float) -> None:
    logits = random_logits(1)[0]
    drawn = draw_many({"temperature": temperature}, logits, 4000)
    assert_distributed(drawn, torch.softmax(logits / temperature, dim=-1))


def test_a_temperature_near_zero_is_greedy_and_finite() -> None:
    logits = random_logits(1)[0]
    assert draw_many({"temperature": 1e-6}, logits, 50) == {int(logits.argmax()): 50}


def test_top_k_keeps_k_tokens() -> None:
    logits = random_logits(1)[0]
    keep = torch.zeros(VOCAB, dtype=torch.bool)
    keep[logits.topk(5).indices] = True
    assert_distributed(draw_many({"top_k": 5}, logits, 4000), kept_only(logits, keep))


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = random_logits(1)[0]
    probabilities, order = torch.softmax(logits, dim=-1).sort(descending=True)
    size = int((probabilities.cumsum(0) < 0.8).sum()) + 1
    keep = torch.zeros(VOCAB, dtype=torch.bool)
    keep[order[:size]] = True
    assert 1 < size < VOCAB
    assert_distributed(draw_many({"top_p": 0.8}, logits, 4000), kept_only(logits, keep))


def test_top_p_counts_within_what_top_k_left() -> None:
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    # Of 0.4 + 0.3, the first alone has 4/7 > 0.5.
    assert draw_many({"top_k": 2, "top_p": 0.5}, logits, 200) == {0: 200}
    assert set(draw_many({"top_k": 2, "top_p": 0.6}, logits, 200)) == {0, 1}


def test_min_p_keeps_tokens_relative_to_the_likeliest() -> None:
    logits = random_logits(1)[0]
    probabilities = torch.softmax(logits, dim=-1)
    keep = probabilities >= 0.1 * probabilities.max()
    assert 1 < int(keep.sum()) < VOCAB
    assert_distributed(draw_many({"min_p": 0.1}, logits, 4000), kept_only(logits, keep))


def test_a_threshold_does_not_depend_on_how_many_candidates_are_sorted() -> None:
    """Flat logits need far more than the first candidates for top_p; ties at the edge stay together."""
    vocab_size = 2000
    logits = random_logits(3, vocab_size) * torch.tensor([[0.02], [1.0], [0.0]])
    logits -= logits.amax(dim=-1, keepdim=True)
    top_k, top_p = np.array([vocab_size, 50, vocab_size]), np.array([0.9, 0.95, 0.5])
    together = top_k_top_p_threshold(logits, top_k, top_p)
    for i in range(3):
        alone = top_k_top_p_threshold(logits[i : i + 1], top_k[i : i + 1], top_p[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)
    kept = (logits >= together[:, None]).sum(dim=-1).tolist()
    assert kept[0] > 1500
    assert kept[1] <= 50
    assert kept[2] == vocab_size


VARIED = [
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"top_k": 7, "min_p": 0.02},
    {"presence_penalty": 0.5, "frequency_penalty": 0.7, "temperature": 1.3},
    {"logit_bias": ((3, 2.0), (9, -100.0)), "top_p": 0.95, "logprobs": 2},
    {"min_tokens": 4, "temperature": 2.0},
    {"top_k": 300, "top_p": 0.999},
]


def test_a_seeded_request_draws_the_same_whatever_runs_beside_it() -> None:
    vocab_size, steps = 400, 8
    logits = torch.stack([random_logits(len(VARIED), vocab_size, seed) for seed in range(steps)])

    together = Bench()
    for row, fields in enumerate(VARIED):
        together.start(row, params(**fields, seed=100 + row), [row, 5, 6])
    for step in range(steps):
        together.draw(logits[step], list(range(len(VARIED))))

    for i, fields in enumerate(VARIED):
        alone = Bench()
        alone.start(11, params(**fields, seed=100 + i), [i, 5, 6])
        for step in range(steps):
            if step == 5:  # resumed in another row after a preemption
                alone.start(3, params(**fields, seed=100 + i), [i, 5, 6], alone.outputs[11])
            alone.draw(logits[step, i : i + 1], [3 if step >= 5 else 11])
        assert alone.outputs[3] == together.outputs[i], fields


def test_seeds_differ_and_places_in_the_output_differ() -> None:
    logits = torch.zeros(1, 10_000)
    bench = Bench()
    bench.start(0, params(seed=1), [5])
    bench.start(1, params(seed=2), [5])
    bench.start(2, params(seed=1), [5])
    for _ in range(6):
        bench.draw(logits.repeat(3, 1), [0, 1, 2])
    assert bench.outputs[0] == bench.outputs[2] != bench.outputs[1]
    assert len(set(bench.outputs[0])) == 6


def test_negative_and_huge_seeds_are_seeds() -> None:
    bench = Bench()
    for row, seed in enumerate([-1, -(2**63), 2**63 - 1]):
        bench.start(row, params(seed=seed), [5])
    uniform = bench.rows.uniforms(np.array([0, 1, 2]), np.array([0, 0, 0]))
    assert len(set(uniform.tolist())) == 3


def test_requests_without_a_seed_differ() -> None:
    bench = Bench()
    for row in range(2):
        bench.start(row, params(seed=None), [5])
    for _ in range(3):
        bench.draw(torch.zeros(2, 10_000), [0, 1])
    assert bench.outputs[0] != bench.outputs[1]


def test_uniform_numbers_are_uniform_across_seeds_and_places() -> None:
    table = SamplingRows(1000, EOS, seed=1)
    table.seed[:] = np.arange(1000)
    values = table.uniforms(np.repeat(np.arange(1000), 20), np.tile(np.arange(20), 1000))
    counts, _ = np.histogram(values, bins=50, range=(0, 1))
    chi_squared = float(((counts - 400) ** 2 / 400).sum())  # 49 degrees of freedom
    assert 20 < chi_squared < 95
    assert values.min() >= 0
    assert values.max() < 1


def slow_penalties(
    logits: list[float], prompt: list[int], output: list[int], s: SamplingParams
) -> list[float]:
    """One token at a time: repetition as in transformers, presence and frequency as in OpenAI's documentation."""
    result = list(logits)
    for token in range(len(result)):
        if token in prompt or token in output:
            penalty = s.repetition_penalty
            result[token] = result[token] / penalty if result[token] > 0 else result[token] * penalty
        count = output.count(token)
        result[token] -= count * s.frequency_penalty + (count > 0) * s.presence_penalty
    return result


@pytest.mark.parametrize("seed", range(5))
def test_penalties_are_those_of_the_slow_twin_as_the_output_grows(seed: int) -> None:
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
    for step in range(100):  # more distinct tokens than a row's arrays start with
        logits = random_logits(len(choices), seed=1000 * seed + step)
        expected = []
        for row, sampling in enumerate(all_params):
            changed = slow_penalties(logits[row].tolist(), prompts[row], bench.outputs[row], sampling)
            expected.append(max(range(VOCAB), key=changed.__getitem__))
        assert bench.draw(logits, list(range(len(choices))))[0] == expected


def test_repetition_penalty_is_transformers_own() -> None:
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


def test_min_tokens_bars_what_would_end_the_output_until_then() -> None:
    bench = Bench()
    logits = torch.zeros(3, VOCAB)
    logits[:, 2], logits[:, 9], logits[:, 12] = 9.0, 8.0, 7.0  # end of sequence, a stop token, another
    bench.start(0, params(temperature=0.0, min_tokens=2, stop_token_ids=(9,)), [5])
    bench.start(1, params(temperature=0.0, min_tokens=2, ignore_eos=True), [5])
    bench.start(2, params(temperature=0.0), [5])
    for _ in range(3):
        bench.draw(logits, [0, 1, 2])
    assert bench.outputs == {0: [12, 12, 2], 1: [2, 2, 2], 2: [2, 2, 2]}


def test_logprobs_are_of_the_raw_logits() -> None:
    bench = Bench()
    logits = random_logits(4)
    raw = logits.log_softmax(dim=-1)
    bench.start(0, params(temperature=0.0, logprobs=0), [5])
    bench.start(1, params(temperature=0.0), [5])
    bench.start(2, params(temperature=3.0, top_k=3, logprobs=4, repetition_penalty=1.5), [5, 6, 7])
    bench.start(3, params(temperature=0.0, logprobs=VOCAB + 10, logit_bias=((8, 100.0),)), [5])
    tokens, logprobs = bench.draw(logits, [0, 1, 2, 3])
    assert tokens[3] == 8
    assert sorted(logprobs) == [0, 2, 3]
    for i, num_top in ((0, 0), (2, 4), (3, VOCAB)):
        assert logprobs[i].logprob == pytest.approx(float(raw[i, tokens[i]]), abs=1e-5)
        top = raw[i].topk(num_top)
        assert [token for token, _ in logprobs[i].top] == top.indices.tolist()
        assert [value for _, value in logprobs[i].top] == pytest.approx(top.values.tolist(), abs=1e-5)


def test_a_row_forgets_its_last_holder() -> None:
    bench = Bench()
    everything = {
        "repetition_penalty": 2.0,
        "logit_bias": ((4, 50.0),),
        "min_tokens": 9,
        "logprobs": 1,
        "top_k": 1,
    }
    bench.start(0, params(**everything), [5, 6])
    logits = random_logits(1)
    assert bench.draw(logits, [0])[0] == [4]
    bench.start(0, params(temperature=0.0), [5, 6])
    logits[0, 2] = 99.0
    tokens, logprobs = bench.draw(logits, [0])
    assert tokens == [2]
    assert logprobs == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits(dtype: torch.dtype) -> None:
    logits = random_logits(1)[0].to(dtype)
    drawn = draw_many({"top_p": 0.9, "frequency_penalty": 0.1}, logits, 1000)
    values, order = logits.float().softmax(-1).sort(descending=True)
    size = int((values.cumsum(0) < 0.9).sum()) + 1
    assert set(drawn) <= set(torch.nonzero(logits >= logits[order[size - 1]]).flatten().tolist())
    assert len(drawn) > 1
