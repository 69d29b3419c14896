"""Attention of rows that compute several tokens, compiled by numba on top of `llvm.register_tiles`.

Grid: one unit of work per (row, key/value head, part of the row's queries). A unit walks its context in blocks of
`_KEYS` positions: it gathers their K and V by slot into panels and multiplies them with its queries, one tile of
queries at a time, keeping a running maximum and sum per query (online softmax, arXiv 1805.02867). The query heads that
share a key/value head are rows of the same tiles. Blocks and panels that no query of a tile may see are skipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, types

from engine.kernels.cpu.llvm.calls import address_of, caller_of
from engine.kernels.cpu.llvm.exponentials import LANES, exp_row, peak_of
from engine.kernels.cpu.llvm.register_tiles import PANEL, TILE_ROWS, tile
from engine.kernels.cpu.llvm.transposed import ROWS, gather_transposed
from engine.kernels.cpu.scalars import FAST, exp, round_to, to_float32

_KEYS = 256  # a block's K and V panels, 64 values each in float32, take 128 KiB of an L2 cache


@njit(inline="always")
def queries_of(unit: Any, parts: Any, chunks: Any) -> tuple[Any, Any, Any, Any, Any]:
    """The queries of a unit: their row and key/value head, the position of the first one in its row and in the step's
    tokens, and the number of tokens."""
    # By head first: threads take contiguous shares, and all heads of a chunk take the same time.
    num_chunks = chunks.shape[1]
    kv_head, chunk, part = unit // parts // num_chunks, unit // parts % num_chunks, unit % parts
    first_token = chunks[2, chunk] * part // parts
    num_tokens = chunks[2, chunk] * (part + 1) // parts - first_token
    return (
        chunks[0, chunk],
        kv_head,
        chunks[1, chunk] + first_token,
        chunks[3, chunk] + first_token,
        num_tokens,
    )


@njit(inline="always", fastmath=FAST)
def store_means(
    sums: Any,  # [R, >= Dv] float32: values weighted by powers below the row's peak
    peaks: Any,  # [R] float32: the row's largest score
    totals: Any,  # [R] float32: sum of the weights; overwritten
    sinks: Any,  # [Hq] float32, or empty
    first_head: Any,
    group: Any,  # row r is head first_head + r % group of token first_token + r // group
    first_token: Any,
    out: Any,  # [T, Hq, Dv] float32, or bfloat16 as uint16; written at those heads of those tokens
) -> None:
    """The end of the online softmax: each row's weighted sum over its total, the sink's weight included."""
    for r in range(len(peaks)):
        head = first_head + r % group
        factor = np.float32(1.0)
        if sinks.size > 0:
            peak = max(peaks[r], sinks[head])
            factor = exp(peaks[r] - peak)
            totals[r] = totals[r] * factor + exp(sinks[head] - peak)
        factor /= totals[r]
        for d in range(out.shape[2]):
            out[first_token + r // group, head, d] = round_to(sums[r, d] * factor, out[0, 0, 0])


@njit(error_model="numpy", fastmath=FAST, cache=True, nogil=True)
def _attend_unit(
    unit: Any,
    q: Any,
    k_cache: Any,
    v_cache: Any,
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
    num_v_panels = (size_v + PANEL - 1) // PANEL
    width = num_v_panels * PANEL
    row, kv_head, start, offset, num_tokens = queries_of(unit, parts, chunks)
    num_rows = num_tokens * group  # row r is query token r // group, head r % group of the kv head's
    queries = np.empty((num_rows, size), dtype=np.float32)
    for r in range(num_rows):
        for d in range(size):
            queries[r, d] = q[offset + r // group, kv_head * group + r % group, d] * scale
    sums = np.zeros((num_rows, width), dtype=np.float32)
    peaks = np.full(num_rows, -np.inf, dtype=np.float32)
    totals = np.zeros(num_rows, dtype=np.float32)
    k_panels = np.empty((_KEYS // PANEL, size, PANEL), dtype=np.float32)
    v_panels = np.empty((num_v_panels, _KEYS, PANEL), dtype=np.float32)
    scores = np.empty((TILE_ROWS, _KEYS), dtype=np.float32)
    end = start + num_tokens
    first_key = max(0, start + 1 - window) if window > 0 else 0
    for block in range(first_key, end if num_tokens > 0 else first_key, _KEYS):
        num_keys = min(_KEYS, end - block)
        num_lines = (num_keys + PANEL - 1) // PANEL * PANEL
        if size % ROWS == 0:
            for j in range(0, num_lines, ROWS):
                known = min(j, num_keys - 1)  # what comes after the last key is not looked at
                gather_transposed(
                    slot_table.ctypes.data + row * slot_table.strides[0] + (block + known) * 4,
                    max(1, min(ROWS, num_keys - j)),
                    k_cache.ctypes.data + kv_head * k_cache.strides[1],
                    k_cache.strides[0],
                    k_cache[0, 0, 0],
                    size,
                    k_panels.ctypes.data + (j // PANEL * size * PANEL + j % PANEL) * 4,
                    PANEL * 4,
                )
        else:
            for j in range(num_lines):
                slot = slot_table[row, block + min(j, num_keys - 1)]
                for d in range(size):
                    k_panels[j // PANEL, d, j % PANEL] = to_float32(k_cache[slot, kv_head, d])
        for j in range(num_keys):
            slot = slot_table[row, block + j]
            for p in range(num_v_panels):
                line = v_panels[p, j]
                for d in range(min(PANEL, size_v - p * PANEL)):
                    line[d] = to_float32(v_cache[slot, kv_head, p * PANEL + d])
        # The first query that sees this block is the one at its first position.
        first_row = max(0, block - start) * group
        num_tiles = (num_rows - first_row + TILE_ROWS - 1) // TILE_ROWS
        for t in range(num_tiles):
            r0 = first_row + (num_rows - first_row) * t // num_tiles
            r1 = first_row + (num_rows - first_row) * (t + 1) // num_tiles
            # Keys that the tile's last query sees.
            seen = min(num_keys, start + (r1 - 1) // group + 1 - block)
            if window > 0 and start + r0 // group - window >= block + num_keys - 1:
                continue  # the whole block is behind the window of the tile's first query, which sees furthest back
            for p in range((seen + PANEL - 1) // PANEL):
                tile(
                    r1 - r0,
                    queries.ctypes.data + r0 * size * 4,
                    size * 4,
                    k_panels.ctypes.data + p * size * PANEL * 4,
                    np.float32(0.0),
                    size,
                    scores.ctypes.data + p * PANEL * 4,
                    _KEYS * 4,
                    0,
                    0,
                    0,
                    0,
                )
            for r in range(r0, r1):
                position = start + r // group
                high = min(seen, position + 1 - block)
                low = min(max(0, position + 1 - window - block), high) if window > 0 else 0
                line = scores[r - r0]
                if softcap > 0:
                    for j in range(low, high):
                        line[j] = softcap * np.tanh(line[j] / softcap)
                num_lanes = (seen + LANES - 1) // LANES * LANES
                line[:low] = -np.inf
                line[high:num_lanes] = -np.inf
                peak = max(peaks[r], peak_of(line.ctypes.data, num_lanes))
                total = np.float32(0.0)
                if peak > -np.inf:
                    total = exp_row(line.ctypes.data, num_lanes, peak)
                else:  # a query whose window starts after this block
                    line[:num_lanes] = np.float32(0.0)
                if peak > peaks[r]:
                    shrink = exp(peaks[r] - peak)
                    totals[r] *= shrink
                    for d in range(width):
                        sums[r, d] *= shrink
                    peaks[r] = peak
                totals[r] += total
            for p in range(num_v_panels):
                to = sums.ctypes.data + (r0 * width + p * PANEL) * 4
                tile(
                    r1 - r0,
                    scores.ctypes.data,
                    _KEYS * 4,
                    v_panels.ctypes.data + p * _KEYS * PANEL * 4,
                    np.float32(0.0),
                    seen,
                    to,
                    width * 4,
                    to,
                    width * 4,
                    0,
                    0,
                )
    store_means(sums, peaks, totals, sinks, kv_head * group, group, offset, out)


_call_unit = caller_of(_attend_unit)


def code_of_units(cache: Any, out: Any) -> int:
    """The address of the code of a unit, for the element types of the caches and of the output."""
    numbers, floats = types.int32[:, ::1], types.float32
    return address_of(
        _attend_unit, types.int64, floats[:, :, ::1], cache[:, :, ::1], cache[:, :, ::1], numbers, numbers,
        types.int64, floats, types.int64, floats, floats[::1], out[:, :, ::1],
    )  # fmt: skip


@njit(parallel=True, cache=True, nogil=True)
def attend_chunks(
    code: Any,  # `code_of_units`
    q: Any,  # [T, Hq, D] float32
    k_cache: Any,  # [num_slots, Hkv, D] float32, or bfloat16 as uint16
    v_cache: Any,  # [num_slots, Hkv, Dv]
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
