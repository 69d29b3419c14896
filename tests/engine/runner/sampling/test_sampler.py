"""Each sampling parameter by itself, and that rows do not affect each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.kernels.cpu.sampling import top_k_top_p_threshold
from engine.runner.sampling.sampler import EarlierDraws, Sampler
from engine.runner.sampling.table import SamplingTable
from tests.engine.runner.sampling.bench import (
    DEVICE,
    EOS,
    VOCAB,
    Bench,
    assert_distributed,
    draw_many,
    params,
    random_logits,
)


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


@pytest.mark.parametrize("temperature", [5e-324, 1e-50, 1e-38, 1e-6, 9e-6, 1e-5])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = random_logits(1)[0]
    assert draw_many({"temperature": temperature}, logits, 50) == {int(logits.argmax()): 50}


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
    """Flat logits need many more candidates for top_p than usual; ties at the threshold stay together."""
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


def test_seeds_differ_and_positions_in_the_output_differ() -> None:
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
    uniform = bench.table.uniforms(np.array([0, 1, 2]), np.array([0, 0, 0]))
    assert len(set(uniform.tolist())) == 3


def test_requests_without_a_seed_differ() -> None:
    bench = Bench()
    for row in range(2):
        bench.start(row, params(seed=None), [5])
    for _ in range(3):
        bench.draw(torch.zeros(2, 10_000), [0, 1])
    assert bench.outputs[0] != bench.outputs[1]


def test_uniform_numbers_are_uniform_across_seeds_and_positions() -> None:
    table = SamplingTable(1000, EOS, seed=1)
    table.seed[:] = np.arange(1000)
    values = table.uniforms(np.repeat(np.arange(1000), 20), np.tile(np.arange(20), 1000))
    counts, _ = np.histogram(values, bins=50, range=(0, 1))
    chi_squared = float(((counts - 400) ** 2 / 400).sum())  # 49 degrees of freedom
    assert 20 < chi_squared < 95
    assert values.min() >= 0
    assert values.max() < 1


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


def test_a_row_forgets_its_previous_request() -> None:
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


def test_a_draw_belongs_to_the_request_that_held_the_row_at_launch() -> None:
    """Another request holds the row before the draw is collected: the token counts for the first one, and its logprobs
    are those that the first one requested."""
    frequency = {"frequency_penalty": 50.0, "temperature": 0.0}
    bench, alone = Bench(), Bench()
    logits = random_logits(1)
    first = int(logits.argmax())
    bench.start(0, params(**frequency, logprobs=2), [5])
    late = bench.launch(logits, [0])
    bench.start(0, params(**frequency), [6])
    bench.start(1, params(**frequency, logprobs=2), [5])
    tokens, logprobs = late.collect()
    assert tokens == [first]
    assert [len(value.top) for value in logprobs.values()] == [2]
    assert late.collect() == (tokens, logprobs)  # the token is counted once
    alone.start(0, params(**frequency), [6])
    for step in range(3):
        logits = random_logits(1, seed=step)
        assert bench.draw(logits, [0]) == alone.draw(logits, [0])
    assert bench.outputs[0][0] == first  # the new request has not drawn it before


def test_two_draws_in_flight_equal_two_draws_in_turn() -> None:
    logits = torch.stack([random_logits(2, seed=step) for step in range(2)])
    fields: list[dict[str, object]] = [{"top_p": 0.9, "logprobs": 1, "min_tokens": 1}, {"temperature": 1.7}]
    ahead, behind = Bench(), Bench()
    for row, own in enumerate(fields):
        ahead.start(row, params(**own, seed=row), [5])
        behind.start(row, params(**own, seed=row), [5])
    drawn = [ahead.launch(logits[step], [0, 1], in_flight=step) for step in range(2)]
    assert drawn[0].token_ids.tolist() == drawn[0].collect()[0]
    assert [each.collect() for each in drawn] == [behind.draw(logits[step], [0, 1]) for step in range(2)]


def test_penalties_count_a_token_that_the_host_does_not_know() -> None:
    """It may be in the prompt, in the output, or new. Between the steps a row passes to another request, and one draws
    nothing."""
    fields: list[dict[str, object]] = [
        {"repetition_penalty": 1.4, "temperature": 0.0},
        {"temperature": 0.0},
        {"frequency_penalty": 0.6, "presence_penalty": 0.9, "temperature": 0.0},
        {"presence_penalty": -0.7, "repetition_penalty": 0.8, "temperature": 1.2, "logit_bias": ((7, 2.0),)},
        {"frequency_penalty": -0.3, "min_tokens": 20, "temperature": 2.0},
    ]
    ahead, behind = Bench(), Bench()
    drawn, last = torch.zeros(16, dtype=torch.int64, device=DEVICE), None
    num_late, kinds = 0, set[str]()
    rng = np.random.default_rng(5)
    for step in range(60):
        started = list(range(5)) if not step else [2] if step == 30 else []
        for bench in (ahead, behind):
            for row in started:
                bench.start(row, params(**fields[row], seed=row), [3, 5, 5, 8])
        rows = [row for row in range(5) if row in started or rng.random() < 0.8] or [0]
        logits = random_logits(len(rows), seed=step)
        in_flight = [] if last is None else [row for row in last[0] if row not in started]
        num_outputs = np.array([len(ahead.outputs[row]) + (row in in_flight) for row in rows])
        earlier = None if last is None else EarlierDraws([last[1]], drawn)
        num_late += sum(
            earlier is not None and ahead.table.is_penalized[row] for row in rows if row in in_flight
        )
        pending = ahead.sampler.draw(logits.clone().to(DEVICE), np.array(rows), num_outputs, earlier=earlier)
        if last is not None:
            for row, token in zip(last[0], last[1].collect()[0], strict=True):
                if row in in_flight:
                    seen = ahead.outputs[row]
                    kinds.add("output" if token in seen else "prompt" if token in (3, 5, 8) else "new")
                    seen.append(token)
        drawn[torch.tensor(rows, device=DEVICE)] = pending.token_ids
        last = (rows, pending)
        assert pending.token_ids.tolist() == behind.draw(logits, rows)[0]
    assert num_late > 100 and kinds == {"prompt", "output", "new"}


def test_the_broadcast_tokens_are_the_drawn_ones() -> None:
    def broadcast(token_ids: torch.Tensor) -> None:
        token_ids.fill_(9)

    bench = Bench()
    bench.sampler = Sampler(bench.table, broadcast)
    bench.start(0, params(temperature=0.0, logprobs=0, frequency_penalty=99.0), [5])
    logits = random_logits(1)
    logits[0, 9] = 1.0
    drawn = bench.launch(logits, [0])
    tokens, logprobs = drawn.collect()
    assert drawn.token_ids.tolist() == tokens == [9]
    assert logprobs[0].logprob == pytest.approx(float(logits[0].log_softmax(-1)[9]), abs=1e-5)
    logits[0, 9] = 90.0  # the likeliest token, except for the penalty on the broadcast one
    bench.sampler = Sampler(bench.table)
    assert bench.launch(logits, [0]).collect()[0] != [9]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits(dtype: torch.dtype) -> None:
    logits = random_logits(1)[0].to(dtype)
    drawn = draw_many({"top_p": 0.9, "frequency_penalty": 0.1}, logits, 1000)
    values, order = logits.float().softmax(-1).sort(descending=True)
    size = int((values.cumsum(0) < 0.9).sum()) + 1
    assert set(drawn) <= set(torch.nonzero(logits >= logits[order[size - 1]]).flatten().tolist())
    assert len(drawn) > 1
