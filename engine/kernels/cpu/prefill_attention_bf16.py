"""Attention of rows that compute several tokens, by the products of `multiply_bf16`.

Grid: one unit of work per (row, key/value head, part of the row's queries). A unit walks its context in blocks of
`_KEYS` positions: it gathers their K and V by slot into panels and multiplies them with its queries, `ROWS` of them at
a time, keeping a running maximum and sum per query (online softmax, arXiv 1805.02867). Weights are rounded to bfloat16,
as K and V are.

    K panel of 32 keys   [D / 32 steps, 2 x 16 keys, 16 pairs of D, 16 keys, 2]: a pair of D is 32 bits of the cache
    V panel of 32 of Dv  [_KEYS / 32 steps, 2 x 16 of Dv, 16 pairs of keys, 16 of Dv, 2]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, typeof, types

from engine.kernels.cpu.llvm.calls import address_of, caller_of
from engine.kernels.cpu.llvm.exponentials import exp_row_bf16, peak_of, scaled_row_bf16
from engine.kernels.cpu.multiply_bf16 import (
    PANEL,
    ROWS,
    STEP,
    STEP_BYTES,
    TILE,
    acquire,
    aligned,
    multiply,
    release,
)
from engine.kernels.cpu.prefill_attention import queries_of, store_means
from engine.kernels.cpu.scalars import FAST, exp

_KEYS = 256  # a block's K and V panels, 64 values each, take 64 KiB of an L2 cache


@njit(error_model="numpy", fastmath=FAST, cache=True, nogil=True)
def _attend_unit(
    unit: Any,
    q: Any,
    k_cache: Any,
    v_cache: Any,
    multiplier: Any,
    slot_table: Any,
    chunks: Any,
    parts: Any,
    scale: Any,
    window: Any,
    softcap: Any,
    sinks: Any,
    out: Any,
) -> None:
    _, num_heads, size = q.shape
    num_kv_heads = k_cache.shape[1]
    size_v = v_cache.shape[2]
    group = num_heads // num_kv_heads
    k_pairs = k_cache.view(np.uint32)  # [num_slots, Hkv, D / 2]
    row, kv_head, start, offset, num_tokens = queries_of(unit, parts, chunks)
    num_rows = num_tokens * group  # row r is query token r // group, head r % group of the kv head's
    # The products of padding rows are computed too, and ignored.
    queries = aligned((num_rows + ROWS) * size * 2).view(np.uint16).reshape(num_rows + ROWS, size)
    for r in range(num_rows):
        query = q.ctypes.data + (offset + r // group) * q.strides[0]
        query += (kv_head * group + r % group) * q.strides[1]
        scaled_row_bf16(query, size, scale, queries.ctypes.data + r * size * 2)
    sums = aligned((num_rows + ROWS) * size_v * 4).view(np.float32).reshape(num_rows + ROWS, size_v)
    sums[:] = np.float32(0.0)
    peaks = np.full(num_rows, -np.inf, dtype=np.float32)
    totals = np.zeros(num_rows, dtype=np.float32)
    k_panels = aligned(_KEYS * size * 2).view(np.uint32).reshape(_KEYS // PANEL, size // STEP, 2, TILE, TILE)
    v_panels = (
        aligned(_KEYS * size_v * 2).view(np.uint16).reshape(size_v // PANEL, _KEYS // STEP, 2, TILE, TILE, 2)
    )
    scores = aligned(ROWS * _KEYS * 4).view(np.float32).reshape(ROWS, _KEYS)
    weights = aligned(ROWS * _KEYS * 2).view(np.uint16).reshape(ROWS, _KEYS)
    before = np.empty(64, dtype=np.uint8)
    acquire(multiplier, before.ctypes.data)
    end = start + num_tokens
    first_key = max(0, start + 1 - window) if window > 0 else 0
    for block in range(first_key, end if num_tokens > 0 else first_key, _KEYS):
        num_keys = min(_KEYS, end - block)
        for j in range(num_keys):
            slot = slot_table[row, block + j]
            for s in range(size // STEP):
                for d in range(TILE):
                    k_panels[j // PANEL, s, j % PANEL // TILE, d, j % TILE] = k_pairs[
                        slot, kv_head, s * TILE + d
                    ]
            for t in range(size_v // TILE):
                for d in range(TILE):
                    v_panels[t // 2, j // STEP, t % 2, j % STEP // 2, d, j % 2] = v_cache[
                        slot, kv_head, t * TILE + d
                    ]
        # Keys that no query sees have weight 0. Their V must be 0 too: an older block may have left infinities.
        for j in range(num_keys, (num_keys + STEP - 1) // STEP * STEP):
            for t in range(size_v // TILE):
                for d in range(TILE):
                    v_panels[t // 2, j // STEP, t % 2, j % STEP // 2, d, j % 2] = np.uint16(0)
        # The first query that sees this block is the one at its first position.
        for r0 in range(max(0, block - start) * group, num_rows, ROWS):
            rows = min(ROWS, num_rows - r0)
            r1 = r0 + rows
            # Keys that the last of these queries sees.
            seen = min(num_keys, start + (r1 - 1) // group + 1 - block)
            if window > 0 and start + r0 // group - window >= block + num_keys - 1:
                continue  # the whole block is behind the window of the first query, which sees furthest back
            num_panels = (seen + PANEL - 1) // PANEL
            for p in range(num_panels):
                multiply(
                    multiplier,
                    rows,
                    size // STEP,
                    queries.ctypes.data + r0 * size * 2,
                    size * 2,
                    k_panels.ctypes.data + p * (size // STEP) * STEP_BYTES,
                    0,
                    0,
                    scores.ctypes.data + p * PANEL * 4,
                    _KEYS * 4,
                    None,
                    None,
                )
            for r in range(r0, r1):
                position = start + r // group
                high = min(seen, position + 1 - block)
                low = min(max(0, position + 1 - window - block), high) if window > 0 else 0
                line = scores[r - r0]
                if softcap > 0:
                    for j in range(low, high):
                        line[j] = softcap * np.tanh(line[j] / softcap)
                line[:low] = -np.inf
                line[high : num_panels * PANEL] = -np.inf
                address = scores.ctypes.data + (r - r0) * _KEYS * 4
                peak = max(peaks[r], peak_of(address, num_panels * PANEL))
                total = np.float32(0.0)
                target = weights.ctypes.data + (r - r0) * _KEYS * 2
                if peak > -np.inf:
                    total = exp_row_bf16(address, num_panels * PANEL, peak, target)
                else:  # a query whose window starts after this block
                    weights[r - r0] = np.uint16(0)
                if peak > peaks[r]:
                    shrink = exp(peaks[r] - peak)
                    totals[r] *= shrink
                    for d in range(size_v):
                        sums[r, d] *= shrink
                    peaks[r] = peak
                totals[r] += total
            for p in range(size_v // PANEL):
                to = sums.ctypes.data + (r0 * size_v + p * PANEL) * 4
                multiply(
                    multiplier,
                    rows,
                    num_panels,
                    weights.ctypes.data,
                    _KEYS * 2,
                    v_panels.ctypes.data + p * (_KEYS // STEP) * STEP_BYTES,
                    to,
                    size_v * 4,
                    to,
                    size_v * 4,
                    None,
                    None,
                )
    release(multiplier, before.ctypes.data)
    store_means(sums, peaks, totals, sinks, kv_head * group, group, offset, out)


_call_unit = caller_of(_attend_unit)


def code_of_units(multiplier: Any, out: Any) -> int:
    """The address of the code of a unit, for this multiplier and the element type of the output."""
    cache, numbers, floats = types.uint16[:, :, ::1], types.int32[:, ::1], types.float32
    kind = typeof(multiplier)  # type: ignore[no-untyped-call]
    return address_of(
        _attend_unit, types.int64, floats[:, :, ::1], cache, cache, kind, numbers, numbers,
        types.int64, floats, types.int64, floats, floats[::1], out[:, :, ::1],
    )  # fmt: skip


@njit(parallel=True, cache=True, nogil=True)
def attend_chunks(
    code: Any,  # `code_of_units`
    q: Any,  # [T, Hq, D] float32, D a multiple of STEP
    k_cache: Any,  # [num_slots, Hkv, D] bfloat16 as uint16
    v_cache: Any,  # [num_slots, Hkv, Dv], Dv a multiple of PANEL
    multiplier: Any,  # `multiply_bf16.multiplier()`
    slot_table: Any,  # [max_rows, max_model_len] int32
    chunks: Any,  # [4, C] int32: row, start, count and offset of each chunk
    parts: Any,  # number of units that the queries of a (chunk, head) are split into
    scale: Any,
    window: Any,  # 0: none
    softcap: Any,  # 0: none
    sinks: Any,  # [Hq] float32, or empty
    out: Any,  # [T, Hq, Dv] float32, or bfloat16 as uint16; written at the chunks' tokens
) -> None:
    """`engine.kernels.reference.attention` for chunks whose K and V are already stored."""
    for unit in prange(chunks.shape[1] * k_cache.shape[1] * parts):
        _call_unit(
            code,
            (
                np.int64(unit),
                q,
                k_cache,
                v_cache,
                multiplier,
                slot_table,
                chunks,
                parts,
                scale,
                window,
                softcap,
                sinks,
                out,
            ),
        )
