"""Products of float8 e4m3 with one scale per row, in simple PyTorch."""

from __future__ import annotations

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
# The smallest value that the largest element of a row is taken for: a row of zeros has a scale too.
LEAST = 1e-12


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x [n, K] as float8 e4m3, and the scales [n, 1] float32 that make it x again.

    The largest element of a row becomes 448, the largest number of the type.
    """
    x = x.float()
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_min(LEAST)
    return (x * (FP8_MAX / largest)).clamp(-FP8_MAX, FP8_MAX).to(FP8), largest / FP8_MAX


def scaled_product(
    x: torch.Tensor,  # [T, K] float8
    x_scales: torch.Tensor,  # [T, 1]
    weight: torch.Tensor,  # [N, K] float8
    weight_scales: torch.Tensor,  # [N]
    bias: torch.Tensor | None,  # [N]
    dtype: torch.dtype,
) -> torch.Tensor:  # [T, N], `dtype`
    """(x * x_scales) @ (weight * weight_scales).T + bias, summed in float32 and rounded once."""
    out = (x.float() @ weight.float().T) * x_scales * weight_scales
    return (out if bias is None else out + bias.float()).to(dtype)
