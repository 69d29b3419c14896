"""How the kernel of a linear layer on a GPU is chosen. On a CPU our own kernel runs in Triton's interpreter."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from engine.kernels.triton.linear import TILINGS, linear_few
from engine.runner.model import linear_gpu
from engine.runner.model.linear_gpu import LinearWeights, TunedLinear, tune_linear

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision(num_outputs: int, num_inputs: int) -> LinearWeights:
    return LinearWeights(torch.randn(num_outputs, num_inputs, device=DEVICE).half(), None)


def test_the_faster_kernel_is_kept() -> None:
    times = iter(
        [
            *(3.0, 1.0, 2.0, 1.5),  # three tilings, then torch
            *(1.0, 2.0, 1.01),  # the two best of those, in that order; a gain within the noise
            *(9.0, 9.0, 1.0) * 5,
        ]
    )
    linear = tune_linear([half_precision(64, 128)] * 2, lambda run: next(times))
    assert linear.tilings == (TILINGS[1], None, *[None] * 5)
    assert next(times, None) is None


def test_a_tiling_that_does_not_fit_is_left_out() -> None:
    calls = itertools.count()

    def seconds(run: Any) -> float:
        if next(calls) < 2:
            raise OutOfResources(130_000, 101_376, "shared memory")
        return float(next(calls))

    assert tune_linear([half_precision(64, 128)], seconds).tilings[0] == TILINGS[2]


def test_float32_uses_torch() -> None:
    assert tune_linear([LinearWeights(torch.randn(64, 128, device=DEVICE), None)]).tilings == ()


def test_larger_token_counts_than_measured_use_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = LinearWeights(torch.randn(70, 128, device=DEVICE), torch.randn(70, device=DEVICE))
    linear = TunedLinear([None, TILINGS[0], TILINGS[0]])
    used = []

    def noted(x: torch.Tensor, *others: Any) -> torch.Tensor:
        used.append(len(x))
        return linear_few(x, *others)

    monkeypatch.setattr(linear_gpu, "linear_few", noted)
    for count in range(1, 7):
        x = torch.randn(count, 128, device=DEVICE)
        expected = x @ weight.weight.T + weight.bias
        torch.testing.assert_close(linear(weight, x), expected, rtol=1e-4, atol=1e-4)
    assert used == [2, 3, 4]


def test_kernels_measured_by_a_real_clock() -> None:
    """In the interpreter torch is certainly faster."""

    def seconds(run: Any) -> float:
        begin = time.perf_counter()
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    linear = tune_linear([half_precision(64, 64)], seconds)
    if DEVICE.type == "cpu":
        assert linear.tilings == (None,) * 7
    ones = torch.ones(64, 64, device=DEVICE).half()
    out = linear(LinearWeights(ones, None), ones[:3])
    assert np.allclose((out if out.dim() == 2 else out.sum(0)).cpu(), 64.0)
