"""Caches of float8 e4m3: conversions of their elements from and to the dtypes that kernels compute in.

Such a cache is read as float8 where the GPU converts it (compute capability 9.0 and higher). Elsewhere it is read as
bytes, whose bits are rearranged. Values have no scale; writes saturate at +-448.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.triton.gpu import capability

FP8 = torch.float8_e4m3fn
FP8_MAX = tl.constexpr(448.0)


def converts_fp8(device: torch.device) -> bool:
    """Whether kernels on `device` convert float8 e4m3 by an instruction. On 8.9, Triton 3.6 emits one that does not
    exist there."""
    return capability(device) >= (9, 0)


@triton.jit
def to_dot_dtype(
    x,  # any shape: elements of a cache, as loaded
    DOT: tl.constexpr,  # the dtype of matrix products
    AS_BITS: tl.constexpr,  # float8 e4m3 is loaded as uint8
):
    if AS_BITS:
        # The bits of e4m3, moved 7 places to the left, are those of a float16, except for the exponent's bias: 7 in
        # e4m3, 15 in float16. Multiplying by 2 ** 8 corrects that, for subnormal numbers too. NaN (all ones) becomes
        # 480.
        bits = x.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        wide = (half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0).to(DOT)
    else:
        wide = x.to(DOT)
    return wide


@triton.jit
def to_fp8_bits(x):  # any shape, float32
    """The bits of x as float8 e4m3, rounded to even, in uint8."""
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = tl.minimum(tl.abs(x), FP8_MAX)
    size_bits = size.to(tl.uint32, bitcast=True)
    # Normal numbers keep 3 of 23 mantissa bits; the exponent's bias changes from 127 to 7.
    normal = ((size_bits + 0x7FFFF + ((size_bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2 ** -6, neighbors are 2 ** -9 apart, which is the last place of 2 ** 14: adding 2 ** 14 rounds to them.
    subnormal = (size + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    rounded = tl.where(size < 0.015625, subnormal, normal)
    return (sign | tl.where(x == x, rounded, 0x7F)).to(tl.uint8)
