"""The scalar functions and the thread pool that the compiled CPU kernels share.

numba's cache on disk looks at the file of a kernel alone: who changes a function here deletes `__pycache__` too.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir  # type: ignore[import-untyped]
import numba
import numpy as np
import torch
from numba import njit, types
from numba.extending import intrinsic, overload

# Sums may be reassociated and fused, so that they vectorise; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}

CACHE_LINE_BYTES = 64

_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)  # few significant bits: n * _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_EXP_UNDERFLOW = np.float32(-87.0)


def use_threads(num_threads: int) -> int:
    """Makes the kernels run on `num_threads`, or on as many as numba has, and returns that number.

    Called with torch's own thread count, which it leaves as it was: numba's OpenMP pool, as it starts, sets the thread
    count of the OpenMP runtime that torch shares with it.
    """
    num_threads = min(num_threads, int(numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    before = torch.get_num_threads()
    numba.set_num_threads(num_threads)  # starts the pool
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
    return num_threads


@njit(inline="always", fastmath=FAST)
def exp(x: Any) -> Any:
    """e**x for x <= 0 in float32 to about 1 ulp: Cephes' expf without branches, so that it vectorises."""
    x = max(x, _EXP_UNDERFLOW)
    n = np.floor(x * _LOG2_E + np.float32(0.5))
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    power = np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power


def _prefetch_of(typing_context: Any, address: Any) -> Any:
    """Asks the CPU for the cache line at `address` (int64) ahead of its use."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        int32 = llvmlite.ir.IntType(32)
        pointer = builder.inttoptr(arguments[0], llvmlite.ir.IntType(8).as_pointer())
        signature = llvmlite.ir.FunctionType(llvmlite.ir.VoidType(), [pointer.type, int32, int32, int32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], signature)
        read, keep, data = int32(0), int32(3), int32(1)
        builder.call(prefetch, [pointer, read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


prefetch: Any = intrinsic(_prefetch_of)


def widen(x: Any) -> Any:
    """A cache element as float32; compiled per element type by `_widen_for`."""
    raise TypeError("runs compiled only")


@overload(widen, inline="always")
def _widen_for(x):  # type: ignore[no-untyped-def]  # numba compares the signatures, annotations too
    if x == types.uint16:  # a bfloat16, which is the upper half of a float32
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


def narrow(x: Any, like: Any) -> Any:
    """A float32 as an element of the type of `like`; compiled per type by `_narrow_for`."""
    raise TypeError("runs compiled only")


@overload(narrow, inline="always")
def _narrow_for(x, like):  # type: ignore[no-untyped-def]
    if like == types.uint16:  # to the nearest bfloat16, ties to even

        def to_bfloat16(x, like):  # type: ignore[no-untyped-def]
            bits = np.float32(x).view(np.uint32)
            odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
            return np.uint16(np.uint32(bits + np.uint32(np.uint32(0x7FFF) + odd)) >> np.uint32(16))

        return to_bfloat16
    return lambda x, like: np.float32(x)
