"""Attention of rows with one new token each, compiled by numba: K and V are read in place, by slot, once.

Grid: one unit of work a row, or a (row, key/value head) where there are few rows. A unit walks its context once for K
and once for V; at each slot it takes all its heads, because they lie side by side and a slot's whole line
is then read in order (twice as fast as a walk a head). The query heads that share a key/value head are done
together: each K and V line is loaded, and widened from bfloat16, once for all of them.

Importing this module imports numba; the kernels compile at their first call and are cached on disk.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir  # type: ignore[import-untyped]
import numba
import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import intrinsic, overload

# Sums may be reassociated and fused, so that they vectorise; NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}

# How many slots ahead of its use a K or V line is asked for. Slots that run down a block, or jump to another, defeat
# the hardware's own guess: without this they take three times as long.
_AHEAD = 8
_CACHE_LINE_BYTES = 64

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


@njit(inline="always", fastmath=_FAST)
def _exp(x: Any) -> Any:
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


_prefetch: Any = intrinsic(_prefetch_of)


def _widen(x: Any) -> Any:
    """A cache element as float32; compiled per element type by `_widen_for`."""
    raise TypeError("runs compiled only")


@overload(_widen, inline="always")
def _widen_for(x):  # type: ignore[no-untyped-def]  # numba compares the signatures, annotations too
    if x == types.uint16:  # a bfloat16, which is the upper half of a float32
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
def attend_single(
    q: Any,  # [S, Hq, D] float32
    k_cache: Any,  # [num_slots, Hkv, D] float32, or bfloat16 as uint16
    v_cache: Any,  # [num_slots, Hkv, Dv]
    slot_table: Any,  # [max_rows, max_model_len] int32
    rows: Any,  # [S] int32
    ends: Any,  # [S] int32: context length, the new token included
    order: Any,  # [S] int32: a permutation of the rows; threads take contiguous runs of it
    scale: Any,
    window: Any,  # 0: none
    softcap: Any,  # 0: none
    sinks: Any,  # [Hq] float32, or empty
    heads_per_unit: Any,  # divides Hkv
    out: Any,  # [S, Hq, Dv] float32, written
) -> None:
    """`engine.kernels.reference.attention` for rows of one token whose K and V are stored already."""
    num_rows, num_heads, size = q.shape
    num_kv_heads = k_cache.shape[1]
    size_v = v_cache.shape[2]
    group = num_heads // num_kv_heads
    units_per_row = num_kv_heads // heads_per_unit
    lanes = heads_per_unit * group  # query heads a unit computes
    for unit in prange(num_rows * units_per_row):
        i = order[unit // units_per_row]
        kv_head = unit % units_per_row * heads_per_unit  # the unit's first
        head = kv_head * group
        row = rows[i]
        end = ends[i]
        first = max(0, end - window) if window > 0 else 0
        length = end - first
        k_first = (
            k_cache.ctypes.data + kv_head * k_cache.strides[1]
        )  # address of slot 0's K of the unit's heads
        v_first = v_cache.ctypes.data + kv_head * v_cache.strides[1]
        weights = np.empty((lanes, length), dtype=np.float32)
        line = np.empty(max(size, size_v), dtype=np.float32)
        acc = np.zeros((lanes, size_v), dtype=np.float32)
        queries = np.empty((lanes, size), dtype=np.float32)
        for g in range(lanes):
            for d in range(size):
                queries[g, d] = q[i, head + g, d] * scale
        for j in range(length):
            ahead = k_first + slot_table[row, first + min(j + _AHEAD, length - 1)] * k_cache.strides[0]
            for line_start in range(0, heads_per_unit * k_cache.strides[1], _CACHE_LINE_BYTES):
                _prefetch(ahead + line_start)
            slot = slot_table[row, first + j]
            for h in range(heads_per_unit):
                for d in range(size):
                    line[d] = _widen(k_cache[slot, kv_head + h, d])
                for g in range(h * group, (h + 1) * group):
                    score = np.float32(0.0)
                    for d in range(size):
                        score += queries[g, d] * line[d]
                    weights[g, j] = score
        for g in range(lanes):
            if softcap > 0:
                for j in range(length):
                    weights[g, j] = softcap * np.tanh(weights[g, j] / softcap)
            peak = weights[g, 0]
            for j in range(1, length):
                peak = max(peak, weights[g, j])
            total = np.float32(0.0)
            if sinks.size > 0:
                sink = sinks[head + g]
                peak = max(peak, sink)
                total = _exp(sink - peak)
            for j in range(length):
                weight = _exp(weights[g, j] - peak)
                weights[g, j] = weight
                total += weight
            inverse = np.float32(1.0) / total
            for j in range(length):
                weights[g, j] *= inverse
        for j in range(length):
            ahead = v_first + slot_table[row, first + min(j + _AHEAD, length - 1)] * v_cache.strides[0]
            for line_start in range(0, heads_per_unit * v_cache.strides[1], _CACHE_LINE_BYTES):
                _prefetch(ahead + line_start)
            slot = slot_table[row, first + j]
            for h in range(heads_per_unit):
                for d in range(size_v):
                    line[d] = _widen(v_cache[slot, kv_head + h, d])
                for g in range(h * group, (h + 1) * group):
                    weight = weights[g, j]
                    for d in range(size_v):
                        acc[g, d] += weight * line[d]
        for g in range(lanes):
            for d in range(size_v):
                out[i, head + g, d] = acc[g, d]
