"""Attention of rows that compute one token each, compiled by numba: K and V are read in place, by slot, once.

Grid: one unit of work per row, or per (row, key/value head) if there are few rows. A unit walks its context once for K
and once for V. At each slot it reads all its heads: they lie side by side, so a slot's whole line is read in order,
which is twice as fast as one walk per head. The query heads that share a key/value head are computed together: each
line of K and V is loaded, and converted from bfloat16, once for all of them.

Importing this module imports numba; the kernels compile on their first call and are cached on disk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, types

from engine.kernels.cpu.llvm.calls import address_of, caller_of
from engine.kernels.cpu.llvm.decode_tiles import (
    DOT_KEYS,
    DOT_ROWS,
    LANES,
    SUM_ROWS,
    SUM_VECTORS,
    dots,
    weighted_sum,
)
from engine.kernels.cpu.llvm.exponentials import exp_row, peak_of
from engine.kernels.cpu.llvm.instructions import CACHE_LINE_BYTES, prefetch
from engine.kernels.cpu.scalars import FAST, exp, round_to, to_float32

# How many slots ahead of its use a line of K or V is prefetched. Slots that run down a block, or jump to another one,
# defeat the hardware prefetcher: without this they take three times as long.
_AHEAD = 8
# V is read this many slots at a time; the first of them are prefetched while K is read.
_V_SLOTS = 64


@njit(error_model="numpy", fastmath=FAST, cache=True, nogil=True)
def _attend_unit(
    unit: Any, q: Any, k_cache: Any, v_cache: Any, slot_table: Any, tokens: Any, rows: Any, ends: Any, order: Any,
    scale: Any, window: Any, softcap: Any, sinks: Any, heads_per_unit: Any, out: Any,
) -> None:  # fmt: skip
    _, num_heads, size = q.shape
    num_kv_heads = k_cache.shape[1]
    size_v = v_cache.shape[2]
    group = num_heads // num_kv_heads
    units_per_row = num_kv_heads // heads_per_unit
    num_queries = heads_per_unit * group  # query heads of a unit
    i = order[unit // units_per_row]
    kv_head = unit % units_per_row * heads_per_unit  # the unit's first
    head = kv_head * group
    row, token = rows[i], tokens[i]
    end = ends[i]
    first = max(0, end - window) if window > 0 else 0
    length = end - first
    # The addresses of slot 0's K and V of the unit's heads.
    k_first = k_cache.ctypes.data + kv_head * k_cache.strides[1]
    v_first = v_cache.ctypes.data + kv_head * v_cache.strides[1]
    width = (length + LANES - 1) // LANES * LANES
    weights = np.empty((num_queries, width), dtype=np.float32)
    line = np.empty(max(size, size_v), dtype=np.float32)
    totals = np.empty(num_queries, dtype=np.float32)
    acc = np.zeros((num_queries, size_v), dtype=np.float32)
    queries = np.empty((num_queries, size), dtype=np.float32)
    for g in range(num_queries):
        for d in range(size):
            queries[g, d] = q[token, head + g, d] * scale
    for j in range(0, length, DOT_KEYS):
        for i in range(j + _AHEAD, min(j + _AHEAD + DOT_KEYS, length)):
            after = slot_table[row, first + i]
            for offset in range(0, heads_per_unit * k_cache.strides[1], CACHE_LINE_BYTES):
                prefetch(k_first + after * k_cache.strides[0] + offset)
            if i < _V_SLOTS:
                for offset in range(0, heads_per_unit * v_cache.strides[1], CACHE_LINE_BYTES):
                    prefetch(v_first + after * v_cache.strides[0] + offset)
        if size % LANES == 0:
            # Beyond the last key, the last key is read again; those scores are overwritten below.
            line_0 = k_first + slot_table[row, first + j] * k_cache.strides[0]
            line_1 = k_first + slot_table[row, first + min(j + 1, length - 1)] * k_cache.strides[0]
            line_2 = k_first + slot_table[row, first + min(j + 2, length - 1)] * k_cache.strides[0]
            line_3 = k_first + slot_table[row, first + min(j + 3, length - 1)] * k_cache.strides[0]
            for h in range(heads_per_unit):
                head_bytes = h * k_cache.strides[1]
                for g in range(h * group, (h + 1) * group, DOT_ROWS):
                    dots(
                        min(DOT_ROWS, (h + 1) * group - g),
                        queries.ctypes.data + g * size * 4,
                        size * 4,
                        k_cache[0, 0, 0],
                        size,
                        weights.ctypes.data + (g * width + j) * 4,
                        width * 4,
                        line_0 + head_bytes,
                        line_1 + head_bytes,
                        line_2 + head_bytes,
                        line_3 + head_bytes,
                    )
            continue
        for i in range(j, min(j + DOT_KEYS, length)):
            slot = slot_table[row, first + i]
            for h in range(heads_per_unit):
                for d in range(size):
                    line[d] = to_float32(k_cache[slot, kv_head + h, d])
                for g in range(h * group, (h + 1) * group):
                    score = np.float32(0.0)
                    for d in range(size):
                        score += queries[g, d] * line[d]
                    weights[g, i] = score
    for g in range(num_queries):
        if softcap > 0:
            for j in range(length):
                weights[g, j] = softcap * np.tanh(weights[g, j] / softcap)
        weights[g, length:] = -np.inf
        address = weights.ctypes.data + g * width * 4
        peak = peak_of(address, width)
        if sinks.size > 0:
            peak = max(peak, sinks[head + g])
        totals[g] = exp_row(address, width, peak)
        if sinks.size > 0:
            totals[g] += exp(sinks[head + g] - peak)
    if size_v % LANES == 0:
        is_wide = size_v % (LANES * SUM_VECTORS) == 0
        # A few slots at a time, so that what one pass loads into the cache is still there for the next pass.
        for j in range(0, length, _V_SLOTS):
            for h in range(heads_per_unit):
                for d in range(0, size_v, LANES * (SUM_VECTORS if is_wide else 1)):
                    for g in range(h * group, (h + 1) * group, SUM_ROWS):
                        weighted_sum(
                            is_wide,
                            min(SUM_ROWS, (h + 1) * group - g),
                            weights.ctypes.data + (g * width + j) * 4,
                            width * 4,
                            v_first + h * v_cache.strides[1] + d * v_cache.itemsize,
                            v_cache[0, 0, 0],
                            slot_table.ctypes.data + row * slot_table.strides[0] + (first + j) * 4,
                            v_cache.strides[0],
                            min(_V_SLOTS, length - j),
                            length - j,
                            acc.ctypes.data + (g * size_v + d) * 4,
                            size_v * 4,
                            _V_SLOTS,
                        )
    else:
        for j in range(length):
            slot = slot_table[row, first + j]
            for h in range(heads_per_unit):
                for d in range(size_v):
                    line[d] = to_float32(v_cache[slot, kv_head + h, d])
                for g in range(h * group, (h + 1) * group):
                    weight = weights[g, j]
                    for d in range(size_v):
                        acc[g, d] += weight * line[d]
    for g in range(num_queries):
        inverse = np.float32(1.0) / totals[g]
        for d in range(size_v):
            out[token, head + g, d] = round_to(acc[g, d] * inverse, out[0, 0, 0])


_call_unit = caller_of(_attend_unit)


def code_of_units(cache: Any, out: Any) -> int:
    """The address of the code of a unit, for the element types of the caches and of the output."""
    integers, floats = types.int32[::1], types.float32
    return address_of(
        _attend_unit, types.int64, floats[:, :, ::1], cache[:, :, ::1], cache[:, :, ::1], types.int32[:, ::1],
        integers, integers, integers, integers, floats, types.int64, floats, floats[::1], types.int64, out[:, :, ::1],
    )  # fmt: skip


@njit(parallel=True, cache=True, nogil=True)
def attend_singles(
    code: Any,  # `code_of_units`
    q: Any,  # [T, Hq, D] float32
    k_cache: Any,  # [num_slots, Hkv, D] float32, or bfloat16 as uint16
    v_cache: Any,  # [num_slots, Hkv, Dv]
    slot_table: Any,  # [max_rows, max_model_len] int32
    tokens: Any,  # [S] int32: the token, of T, that each row computes
    rows: Any,  # [S] int32
    ends: Any,  # [S] int32: context length, including the new token
    order: Any,  # [S] int32: a permutation of the rows, of which each thread takes a contiguous part
    scale: Any,
    window: Any,  # 0: none
    softcap: Any,  # 0: none
    sinks: Any,  # [Hq] float32, or empty
    heads_per_unit: Any,  # divides Hkv
    out: Any,  # [T, Hq, Dv] float32, or bfloat16 as uint16; written at `tokens`
) -> None:
    """`engine.kernels.reference.attention` for rows of one token whose K and V are already stored."""
    for unit in prange(len(tokens) * (k_cache.shape[1] // heads_per_unit)):
        _call_unit(
            code,
            (
                np.int64(unit), q, k_cache, v_cache, slot_table, tokens, rows, ends, order, scale, window, softcap,
                sinks, heads_per_unit, out,
            ),
        )  # fmt: skip
