"""Tokens as float8 e4m3 with one scale each, as float8 products take them, in Triton: one launch, one program a token.

`engine.kernels.reference.fp8_linear.quantize_rows` states what it computes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.reference.fp8_linear import FP8, LEAST
from engine.kernels.triton.fp8 import FP8_MAX, converts_fp8, to_fp8_bits

_LEAST = tl.constexpr(LEAST)
# Elements that a program holds at once. A wider token is read twice, the second time from the cache.
_MOST_HELD = 16384
_WARP_ELEMENTS = 512


@triton.jit
def _quantize_tokens_kernel(
    x_ptr,  # [T, SIZE]
    out_ptr,  # [T, SIZE] float8 e4m3, or its bits as uint8; written
    scales_ptr,  # [T, 1] float32, written
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Grid: (T,)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    sizes = tl.zeros([BLOCK], dtype=tl.float32)
    for start in tl.static_range(0, SIZE, BLOCK):
        mask = start + columns < SIZE
        x = tl.load(x_ptr + token * SIZE + start + columns, mask=mask, other=0.0).to(tl.float32)
        sizes = tl.maximum(sizes, tl.abs(x))
    largest = tl.maximum(tl.max(sizes, axis=0), _LEAST)
    tl.store(scales_ptr + token, largest / FP8_MAX)
    factor = FP8_MAX / largest
    for start in tl.static_range(0, SIZE, BLOCK):
        mask = start + columns < SIZE
        x = tl.load(x_ptr + token * SIZE + start + columns, mask=mask, other=0.0).to(tl.float32) * factor
        x = tl.where(x == x, tl.minimum(tl.maximum(x, -FP8_MAX), FP8_MAX), x)  # NaN stays NaN
        if out_ptr.dtype.element_ty == tl.uint8:
            tl.store(out_ptr + token * SIZE + start + columns, to_fp8_bits(x), mask=mask)
        else:
            tl.store(out_ptr + token * SIZE + start + columns, x.to(tl.float8e4nv), mask=mask)


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x [T, K] as float8 e4m3, and the scales [T, 1] float32 that make it x again."""
    if not x.is_contiguous():
        raise ValueError(f"tokens {tuple(x.shape)} are not contiguous; this kernel takes contiguous ones")
    num_tokens, size = x.shape
    out = torch.empty_like(x, dtype=FP8)
    scales = torch.empty((num_tokens, 1), dtype=torch.float32, device=x.device)
    if num_tokens:
        block = min(_MOST_HELD, triton.next_power_of_2(size))
        _quantize_tokens_kernel[(num_tokens,)](
            x,
            out if converts_fp8(x.device) else out.view(torch.uint8),
            scales,
            SIZE=size,
            BLOCK=block,
            num_warps=max(1, min(16, block // _WARP_ELEMENTS)),
        )
    return out, scales
