"""Scalar functions of the compiled CPU kernels: the exponential, and conversions from and to bfloat16.

numba's cache on disk checks only the file of the kernel itself: after a change here, delete `__pycache__`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

# Sums may be reassociated and fused, so that they vectorize; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}

_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)  # few significant bits: n * _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_EXP_UNDERFLOW = np.float32(-87.0)


@njit(inline="always", fastmath=FAST)
def exp(x: Any) -> Any:
    """e**x for x <= 0 in float32 to about 1 ulp: Cephes' expf without branches, so that it vectorizes."""
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


def to_float32(x: Any) -> Any:
    """Converts an element of a cache to float32. `_to_float32_for` implements it per element type."""
    raise TypeError("runs compiled only")


@overload(to_float32, inline="always")
def _to_float32_for(x):  # type: ignore[no-untyped-def]  # numba compares the signatures, annotations too
    if x == types.uint16:  # bfloat16 is the upper half of a float32
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


def round_to(x: Any, like: Any) -> Any:
    """Rounds a float32 to the element type of `like`. `_round_to_for` implements it per element type."""
    raise TypeError("runs compiled only")


@overload(round_to, inline="always")
def _round_to_for(x, like):  # type: ignore[no-untyped-def]
    if like == types.uint16:  # to the nearest bfloat16, ties to even

        def to_bfloat16(x, like):  # type: ignore[no-untyped-def]
            bits = np.float32(x).view(np.uint32)
            odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
            return np.uint16(np.uint32(bits + np.uint32(np.uint32(0x7FFF) + odd)) >> np.uint32(16))

        return to_bfloat16
    return lambda x, like: np.float32(x)
