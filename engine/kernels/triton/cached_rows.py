"""What the attention kernels share: rows of a cache read by slot, numbers of 8 bits made wide, scores in base 2.

A cache of float8 e4m3 is read as such where the GPU converts it (compute capability 9.0 and up), and elsewhere as bytes
whose bits are moved by hand; its values have no scale, and writing saturates at +-448.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

import engine.kernels.triton.interpreter  # noqa: F401  fixes Triton's interpreter where kernels run in it
from engine.kernels.attention_options import AttentionOptions

LOG2_E = tl.constexpr(1.4426950408889634)
FP8 = torch.float8_e4m3fn
FP8_MAX = tl.constexpr(448.0)
FLOATS = (torch.bfloat16, torch.float16, torch.float32)

_DOT_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def widen(
    x,  # any shape: a cache's elements as loaded
    DOT: tl.constexpr,  # the dtype of matrix products
    AS_BITS: tl.constexpr,  # float8 e4m3 is loaded as uint8
):
    if AS_BITS:
        # e4m3's bits are float16's, 7 places further left, but for the exponent's bias: 7 there, 15 here. 2 ** 8 makes
        # up for that, subnormal numbers included. NaN (all ones) becomes 480.
        bits = x.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        wide = (half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0).to(DOT)
    else:
        wide = x.to(DOT)
    return wide


@triton.jit
def narrow(x):  # any shape, float32 -> uint8: the bits of float8 e4m3, rounded to even
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = tl.minimum(tl.abs(x), FP8_MAX)
    size_bits = size.to(tl.uint32, bitcast=True)
    # Normal numbers keep 3 of 23 mantissa bits; the exponent's bias goes from 127 to 7.
    normal = ((size_bits + 0x7FFFF + ((size_bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2 ** -6 steps are 2 ** -9, which is the last place of 2 ** 14: adding that rounds to them.
    subnormal = (size + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    rounded = tl.where(size < 0.015625, subnormal, normal)
    return (sign | tl.where(x == x, rounded, 0x7F)).to(tl.uint8)


@triton.jit
def base2_scores(
    products,  # any shape, float32
    scale,
    softcap,  # float32, read only if HAS_SOFTCAP
    HAS_SOFTCAP: tl.constexpr,
):
    """Scores times log2(e), so that the softmax's powers are of 2, which the hardware has."""
    if HAS_SOFTCAP:
        # tanh(x) = 1 - 2 / (exp(2x) + 1), which is right at both infinities too.
        power = tl.exp2(products * (scale * 2.0 * LOG2_E / softcap))
        scores = (softcap * LOG2_E) * (1.0 - 2.0 / (power + 1.0))
    else:
        scores = products * (scale * LOG2_E)
    return scores


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What both attention kernels are launched with."""

    q: torch.Tensor  # [T, Hq, D]
    k_cache: torch.Tensor  # [num_slots, Hkv, D]; of uint8 if `as_bits`
    v_cache: torch.Tensor  # [num_slots, Hkv, Dv]
    out: torch.Tensor  # [T, Hq, Dv]
    sinks: torch.Tensor  # [Hq]; `q` in its place if there are none
    scale: float
    softcap: float
    window: int
    capability: tuple[int, int]
    constants: dict[str, Any]  # compile-time arguments that both kernels take

    @property
    def group(self) -> int:
        """Query heads a key/value head."""
        return self.q.shape[1] // self.k_cache.shape[1]


def attention_inputs(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    options: AttentionOptions,
    out: torch.Tensor,
) -> AttentionInputs:
    """Checks shapes and dtypes. Raises ValueError."""
    _check(q, k_cache, v_cache, options, out)
    as_bits = k_cache.dtype is FP8 and not converts_fp8(q.device)
    if as_bits:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    return AttentionInputs(
        q if q.stride(2) == 1 else q.contiguous(),
        k_cache,
        v_cache,
        out,
        q if options.sinks is None else options.sinks,
        options.scale,
        options.softcap or 0.0,
        options.window or 0,
        capability(q.device),
        {
            "GROUP": q.shape[1] // k_cache.shape[1],
            "D": q.shape[2],
            "DV": v_cache.shape[2],
            "BLOCK_D": padded(q.shape[2]),
            "BLOCK_DV": padded(v_cache.shape[2]),
            "HAS_WINDOW": options.window is not None,
            "HAS_SOFTCAP": options.softcap is not None,
            "HAS_SINKS": options.sinks is not None,
            "DOT": _DOT_DTYPES[q.dtype],
            "AS_BITS": as_bits,
        },
    )


def _check(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    options: AttentionOptions,
    out: torch.Tensor,
) -> None:
    window, softcap, sinks = options.window, options.softcap, options.sinks
    if q.dtype not in FLOATS:
        raise ValueError(f"Q is {q.dtype}; attention computes bfloat16, float16 and float32")
    if k_cache.dtype not in (*FLOATS, FP8) or v_cache.dtype is not k_cache.dtype:
        raise ValueError(f"caches are {k_cache.dtype} and {v_cache.dtype}; both must be Q's dtype or {FP8}")
    if k_cache.shape[:2] != v_cache.shape[:2] or k_cache.shape[2] != q.shape[2]:
        raise ValueError(
            f"caches of shapes {list(k_cache.shape)} and {list(v_cache.shape)} do not go with Q of {list(q.shape)}"
        )
    if q.shape[1] % k_cache.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k_cache.shape[1]} key/value heads evenly")
    if out.shape != (*q.shape[:2], v_cache.shape[2]) or out.dtype is not q.dtype:
        raise ValueError(
            f"the output is {out.dtype} {list(out.shape)}, beside {q.dtype} Q of {list(q.shape)}"
        )
    if k_cache.stride(2) != 1 or v_cache.stride(2) != 1 or out.stride(2) != 1:
        raise ValueError("a head's numbers must lie side by side, in the caches and in the output")
    if window is not None and window < 1:
        raise ValueError(f"a window of {window} tokens sees nothing")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"a soft-cap of {softcap:g} is not positive")
    if sinks is not None and (sinks.shape != q.shape[1:2] or not sinks.is_contiguous()):
        raise ValueError(f"sinks of shape {list(sinks.shape)}, for {q.shape[1]} query heads")


def converts_fp8(device: torch.device) -> bool:
    """Whether kernels on `device` convert float8 e4m3 by an instruction; on 8.9 Triton 3.6 makes it of one that is not
    there."""
    return capability(device) >= (9, 0)


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """A GPU's compute capability. A CPU, where the interpreter runs, is taken for the first that has all we use."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


@cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; a CPU, which only tests use, is taken for a small one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def padded(size: int) -> int:
    """The power of two that a head of `size` is computed in; matrix products take no less than 16."""
    return max(16, 1 << (size - 1).bit_length())
