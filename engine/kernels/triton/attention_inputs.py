"""What the decode and the prefill attention kernels are launched with, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.triton.fp8 import FP8, converts_fp8
from engine.kernels.triton.gpu import capability

FLOATS = (torch.bfloat16, torch.float16, torch.float32)

_DOT_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """The arguments that both attention kernels are launched with."""

    q: torch.Tensor  # [T, Hq, D]
    k_cache: torch.Tensor  # [num_slots, Hkv, D]; uint8 if kernels convert float8 themselves
    v_cache: torch.Tensor  # [num_slots, Hkv, Dv]
    out: torch.Tensor  # [T, Hq, Dv]
    sinks: torch.Tensor  # [Hq]; `q` as a placeholder if there are none
    scale: float
    softcap: float
    window: int
    capability: tuple[int, int]
    constants: dict[str, Any]  # compile-time arguments of both kernels

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.q.shape[1] // self.k_cache.shape[1]


def attention_inputs(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    options: AttentionOptions,
    out: torch.Tensor,
) -> AttentionInputs:
    """Checks shapes and dtypes and returns the arguments. Raises ValueError."""
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
            f"caches of shapes {list(k_cache.shape)} and {list(v_cache.shape)} do not match Q of {list(q.shape)}"
        )
    if q.shape[1] % k_cache.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k_cache.shape[1]} key/value heads evenly")
    if out.shape != (*q.shape[:2], v_cache.shape[2]) or out.dtype is not q.dtype:
        raise ValueError(
            f"the output is {out.dtype} {list(out.shape)}, which does not match {q.dtype} Q of {list(q.shape)}"
        )
    if k_cache.stride(2) != 1 or v_cache.stride(2) != 1 or out.stride(2) != 1:
        raise ValueError("the elements of a head must be contiguous in the caches and in the output")
    if window is not None and window < 1:
        raise ValueError(f"a window of {window} tokens sees nothing; it must be at least 1")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"a softcap of {softcap:g} is not positive")
    if sinks is not None and (sinks.shape != q.shape[1:2] or not sinks.is_contiguous()):
        raise ValueError(f"sinks of shape {list(sinks.shape)} do not match {q.shape[1]} query heads")


def padded(size: int) -> int:
    """The power of two to which kernels pad a head of `size`; matrix products need at least 16."""
    return max(16, 1 << (size - 1).bit_length())
