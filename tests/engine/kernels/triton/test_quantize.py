"""Tokens in float8 and products of float8: in Triton's interpreter, or on a GPU that has float8."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from engine.kernels.reference.fp8_linear import FP8, quantize_rows
from engine.kernels.triton import quantize
from engine.kernels.triton.gpu import Processors
from engine.kernels.triton.linear import TILINGS, Scales, linear_few
from engine.kernels.triton.quantize import quantize_tokens

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_become_what_the_reference_says(dtype: torch.dtype) -> None:
    x = (noise(0, 5, 100) * torch.tensor([[1e-6], [1.0], [300.0], [1e20], [0.0]], device=DEVICE)).to(dtype)
    ours, scales = quantize_tokens(x)
    expected, expected_scales = quantize_rows(x)
    assert same(ours, expected)
    torch.testing.assert_close(scales, expected_scales)
    assert ours.float().abs().amax(dim=1).tolist() == [448.0] * 4 + [0.0]
    # Numbers of 3 bits of mantissa: each is at most a 16th from what it stands for, or half the smallest one.
    error = (ours.float() * scales - x.float()).abs()
    assert bool((error <= (x.float().abs() / 16).maximum(scales * 2**-10) * 1.001).all())


def test_bits_where_the_gpu_does_not_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(1, 4, 48)
    monkeypatch.setattr(quantize, "converts_fp8", lambda device: False)
    assert same(quantize_tokens(x)[0], quantize_rows(x)[0])


def test_a_wide_token_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "_MOST_HELD", 32)
    x = noise(2, 3, 100)
    x[:, 99] = 7.0
    ours, scales = quantize_tokens(x)
    expected, expected_scales = quantize_rows(x)
    assert same(ours, expected) and torch.equal(scales, expected_scales)


def test_nan_stays_in_its_token() -> None:
    x = noise(3, 3, 32)
    x[1, 5] = torch.nan
    ours, scales = quantize_tokens(x)
    values = ours.float() * scales
    assert bool(values[1].isnan().any())
    assert bool(values[[0, 2]].isfinite().all())


def test_no_tokens() -> None:
    ours, scales = quantize_tokens(noise(0, 0, 32))
    assert ours.shape == (0, 32) and scales.shape == (0, 1)


@pytest.mark.parametrize(("num_tokens", "num_inputs"), [(1, 1024), (5, 1040)])
def test_products_of_few_tokens(num_tokens: int, num_inputs: int) -> None:
    """Whole or in parts, with scales before the bias, which is added once."""
    x, weight = quantize_tokens(noise(4, num_tokens, num_inputs)), quantize_rows(noise(5, 70, num_inputs))
    bias = noise(6, 70)
    expected = (x[0].double() * x[1]) @ (weight[0].double() * weight[1]).T + bias
    num_parts = set()
    for processors in (Processors(1, 60 * 1024), Processors(64, 228 * 1024)):
        out = linear_few(
            x[0], weight[0], bias, TILINGS[0], processors, Scales(x[1], weight[1][:, 0], torch.float32)
        )
        num_parts.add(out.dim())
        out = out if out.dim() == 2 else out.sum(0)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-3)
    assert num_parts == {2, 3}
    assert x[0].dtype is FP8
