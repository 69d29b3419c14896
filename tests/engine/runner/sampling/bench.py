"""A sampler with requests in its rows, and checks of what it draws, for the tests of this folder."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import torch

from engine.core.plan import RowStart
from engine.core.terms import SamplingParams, TokenLogprobs
from engine.runner.sampling.sampler import PendingDraw, Sampler
from engine.runner.sampling.table import SamplingTable

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EOS = frozenset({2})
VOCAB = 40


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 100, "seed": 0, **fields})


def random_logits(num_rows: int, vocab_size: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))


class Bench:
    """A sampler and the requests in its rows."""

    def __init__(self, num_rows: int = 16) -> None:
        self.table = SamplingTable(num_rows, EOS, seed=1)
        self.sampler = Sampler(self.table)
        self.outputs: dict[int, list[int]] = {}

    def start(
        self, row: int, sampling: SamplingParams, prompt: list[int], output: list[int] | None = None
    ) -> None:
        output = list(output or [])
        self.table.start(RowStart(row, f"r{row}", prompt + output, len(prompt), [], sampling))
        self.outputs[row] = output

    def launch(self, logits: torch.Tensor, rows: list[int], in_flight: int = 0) -> PendingDraw:
        """Launches a draw while each row has `in_flight` tokens that are not in its output yet."""
        num_outputs = np.array([len(self.outputs[row]) + in_flight for row in rows])
        return self.sampler.draw(logits.clone().to(DEVICE), np.array(rows), num_outputs)

    def draw(self, logits: torch.Tensor, rows: list[int]) -> tuple[list[int], dict[int, TokenLogprobs]]:
        tokens, logprobs = self.launch(logits, rows).collect()
        for row, token in zip(rows, tokens, strict=True):
            self.outputs[row].append(token)
        return tokens, logprobs


def draw_many(sampling: dict[str, Any], logits: torch.Tensor, times: int) -> Counter[int]:
    """How often each token is drawn when `times` seeds draw from the same logits [V]."""
    bench = Bench(times)
    for row in range(times):
        bench.start(row, params(**sampling, seed=row), [5])
    tokens, _ = bench.draw(logits.repeat(times, 1), list(range(times)))
    return Counter(tokens)


def assert_distributed(drawn: Counter[int], expected: torch.Tensor) -> None:
    """Checks that each token occurs within five standard deviations of its expected number, and impossible ones
    never."""
    times = drawn.total()
    assert set(drawn) <= set(torch.nonzero(expected).flatten().tolist())
    for token, p in enumerate(expected.tolist()):
        assert abs(drawn[token] - times * p) <= 5 * math.sqrt(times * p * (1 - p)) + 1e-9
