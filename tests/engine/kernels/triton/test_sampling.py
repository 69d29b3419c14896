"""Draws on a GPU against the reference: the tokens kept, the token drawn, and that only its own row matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine.kernels.cpu import sampling as cpu_sampling
from engine.kernels.reference.sampling import draw as draw_slowly
from engine.kernels.reference.sampling import kept

pytest.importorskip("triton")

from engine.kernels.triton.sampling import draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# A row of two hundred tokens takes several blocks and tiles, and has more tokens than candidates.
SMALL = {"block": 128, "tile": 64, "num_candidates": 16}
OFF = (1.0, 1.0, 0, 0.0)  # temperature, top_p, top_k, min_p


def numbers_of(parameters: list[tuple[float, float, float, float]], uniform: Any) -> torch.Tensor:
    """[5, n]"""
    columns = np.concatenate([np.array(parameters, dtype=np.float64).T, np.asarray(uniform)[None]])
    return torch.from_numpy(np.ascontiguousarray(columns))


def run(logits: torch.Tensor, numbers: torch.Tensor, **sizes: int) -> torch.Tensor:
    return draw(logits.to(DEVICE), numbers.to(DEVICE), **sizes).cpu()


def random_logits(
    seed: int, num_rows: int, vocab_size: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Peaked and flat rows; 16-bit rows have many ties."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([4.0, 1.0, 0.1, 8.0]).repeat(num_rows)[:num_rows, None]
    return (spread * torch.randn(num_rows, vocab_size, generator=generator)).to(dtype)


def random_parameters(seed: int, num_rows: int, vocab_size: int) -> list[tuple[float, float, float, float]]:
    rng = np.random.default_rng(seed)
    return [
        (
            float(rng.choice([0.0, 0.3, 1.0, 1.0, 2.5])),
            float(rng.choice([1.0, rng.random(), 0.95])),
            int(rng.choice([0, 0, 1, rng.integers(1, vocab_size + 2)])),
            float(rng.choice([0.0, 0.0, 0.03])),
        )
        for _ in range(num_rows)
    ]


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "min_p"),
    [
        (1.0, 0.9, 0, 0.0),
        (1.0, 1e-9, 0, 0.0),
        (1.0, 1.0, 1, 0.0),
        (1.0, 1.0, 16, 0.0),
        (2.0, 1.0, 17, 0.0),
        (3.0, 1.0, 199, 0.0),
        (1.0, 1.0, 0, 0.02),
        (1.5, 0.8, 90, 0.0),
        (1.0, 0.98, 150, 0.001),
    ],
)
def test_kept_tokens(temperature: float, top_p: float, top_k: int, min_p: float) -> None:
    """The likeliest tokens come last, so that a uniform number of 0 draws the token at the threshold."""
    rows = [
        *random_logits(1, 2, 200),
        *random_logits(2, 2, 200, torch.bfloat16)[1:].float(),
        torch.zeros(200),
    ]
    logits = torch.stack([row.sort().values for row in rows])
    logits[0, :40] = -torch.inf
    numbers = numbers_of([(temperature, top_p, top_k, min_p)] * len(rows), np.zeros(len(rows)))
    expected = [int(kept(row, temperature, top_p, top_k, min_p).nonzero()[0]) for row in logits]
    # Tokens so unlikely that their integer weight is 0 are never drawn, but none of these are.
    assert run(logits, numbers, **SMALL).tolist() == expected
    assert cpu_sampling.draw(logits, numbers.numpy()).tolist() == expected


@pytest.mark.parametrize("parameters", [OFF, (0.7, 0.9, 0, 0.0), (2.0, 0.99, 60, 0.0), (1.0, 1.0, 0, 0.01)])
def test_each_token_is_drawn_in_its_range_of_uniform_numbers(
    parameters: tuple[float, float, int, float],
) -> None:
    row = random_logits(3, 1, 140)[0] / 2
    weights = kept(row, *parameters)
    cumulative = weights.cumsum(0)
    likely = (weights > 1e-4 * cumulative[-1]).nonzero()[::5, 0]
    middles = ((cumulative - weights / 2) / cumulative[-1])[likely]
    numbers = numbers_of([parameters] * len(likely), middles)
    assert torch.equal(run(row.expand(len(likely), -1), numbers, **SMALL), likely)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [
        (1, torch.float16),
        (2, torch.bfloat16),
        (64, torch.float32),
        (65, torch.float16),
        (129, torch.float32),
        (201, torch.bfloat16),
    ],
)
def test_mixed_rows_against_the_reference(vocab_size: int, dtype: torch.dtype) -> None:
    num_rows = 7
    logits = random_logits(vocab_size, num_rows, vocab_size, dtype)
    uniform = np.random.default_rng(vocab_size).random(num_rows)
    parameters = random_parameters(vocab_size, num_rows, vocab_size)
    tokens = run(logits, numbers_of(parameters, uniform), **SMALL)
    # Rounding decides where the boundary between two tokens lies.
    before = draw_slowly(logits, numbers_of(parameters, (uniform - 1e-5).clip(0)))
    after = draw_slowly(logits, numbers_of(parameters, (uniform + 1e-5).clip(max=1 - 1e-12)))
    assert ((before <= tokens) & (tokens <= after)).all()


def test_a_row_draws_the_same_alone_and_however_it_is_divided() -> None:
    num_rows, vocab_size = 5, 201
    logits = random_logits(7, num_rows, vocab_size, torch.bfloat16)
    numbers = numbers_of(
        random_parameters(7, num_rows, vocab_size), np.random.default_rng(7).random(num_rows)
    )
    together = run(logits, numbers, **SMALL)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(logits[order], numbers[:, order].contiguous(), **SMALL), together[order])
    for i in range(num_rows):
        assert run(logits[i : i + 1], numbers[:, i : i + 1].contiguous(), **SMALL).tolist() == [
            int(together[i])
        ]
    assert torch.equal(run(logits, numbers), together)
    assert torch.equal(run(logits, numbers, block=64, tile=128, num_candidates=32), together)


def test_rows_of_a_wider_tensor() -> None:
    wide = random_logits(8, 4, 300)
    numbers = numbers_of(
        [OFF, (0.0, 1.0, 0, 0.0), (1.0, 0.7, 0, 0.0), (1.0, 1.0, 3, 0.0)], [0.3, 0.3, 0.3, 0.3]
    )
    assert torch.equal(
        run(wide[:, :200], numbers, **SMALL), run(wide[:, :200].contiguous(), numbers, **SMALL)
    )
    assert torch.equal(run(wide[:, ::2], numbers, **SMALL), run(wide[:, ::2].contiguous(), numbers, **SMALL))


def test_greedy_rows_take_the_first_of_the_likeliest() -> None:
    logits = random_logits(9, 4, 300)
    logits[1, [70, 71, 200]] = 50.0
    logits[2] = 0.0
    logits[3] = -torch.inf
    tokens = run(logits, numbers_of([(0.0, 0.5, 3, 0.1)] * 4, [0.9] * 4), **SMALL)
    assert tokens.tolist() == [int(logits[0].argmax()), 70, 0, 0]


@pytest.mark.parametrize("limits", [(1.0, 0, 0.0), (0.9, 0, 0.0), (1.0, 5, 0.0), (0.9, 20, 0.1)])
def test_extreme_rows(limits: tuple[float, int, float]) -> None:
    """Tokens with a logit of -inf are never drawn, at any temperature, and nothing overflows."""
    top_p, top_k, min_p = limits
    logits = random_logits(10, 6, 100)
    logits[0, 10:] = -torch.inf  # few enough that every limit leaves some
    logits[1, 33] = torch.inf
    logits[2] = -torch.inf
    logits[3] = torch.nan
    logits[4, ::2] = torch.nan
    logits[5] = torch.finfo(torch.float32).min
    logits[5, 44] = 3.0
    for temperature, uniform in ((1e-9, 0.5), (1.0, 1 - 2.0**-52), (1e30, 0.0)):
        parameters = [(temperature, top_p, top_k, min_p)] * 6
        tokens = run(logits, numbers_of(parameters, [uniform] * 6), **SMALL).tolist()
        assert tokens[0] < 10
        assert tokens[1] == 33
        assert all(0 <= token < 100 for token in tokens)
        assert tokens[4] % 2 == 1
        assert tokens[5] == 44
        if temperature < 1:
            assert tokens[0] == int(logits[0].argmax())


@pytest.mark.parametrize(("vocab_size", "spread", "is_flat"), [(40_000, 5.0, False), (9_000, 0.02, True)])
def test_a_vocabulary_divided_as_on_a_gpu(vocab_size: int, spread: float, is_flat: bool) -> None:
    """A flat row keeps many more tokens than there are candidates."""
    logits = spread * torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(1))
    for parameters, uniform in (((0.8, 0.95, 0, 0.0), 0.4), ((0.6, 0.9, 5_000, 0.0), 0.7)):
        token = int(run(logits, numbers_of([parameters], [uniform]))[0])
        weights = kept(logits[0], *parameters)
        share, own = float(weights[: token + 1].sum() / weights.sum()), float(weights[token] / weights.sum())
        assert own > 0
        assert share - own - 1e-5 <= uniform <= share + 1e-5
        assert (int((weights > 0).sum()) > 2048) == is_flat


def test_no_rows_and_wrong_numbers() -> None:
    assert run(torch.empty(0, 9), numbers_of([OFF], [0.0])[:, :0].contiguous()).tolist() == []
    with pytest.raises(ValueError, match="numbers must be float64"):
        run(torch.empty(2, 9), numbers_of([OFF], [0.0]))
    with pytest.raises(ValueError, match="numbers must be float64"):
        run(torch.empty(1, 9), numbers_of([OFF], [0.0]).float())
