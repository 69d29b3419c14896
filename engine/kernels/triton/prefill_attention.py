"""Attention of rows that compute several tokens: one tile of queries per program, online softmax over the context.

A program computes `CHUNK_TILE_TOKENS` queries of one row, for one or two query heads that share a key/value head:

    queries (r = head in program, token)        keys, a block at a time
      head 0, tokens 0..63     |         0 ............... start+first | start+first ... |
      head 1, tokens 0..63     |         all queries see all of these  | a triangle      |

Few tiles after long contexts would leave most of a GPU idle. Then the step's list (see `engine.kernels.shares`) has
several shares of a tile's keys. A second launch computes these, each program a part, which `merge_shares` merges.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.layout import CHUNK_TILE_TOKENS, StepLayout
from engine.kernels.triton.attention_inputs import AttentionInputs, padded
from engine.kernels.triton.attention_tiling import PrefillTiling, prefill_tiling, prefill_tiling_of
from engine.kernels.triton.fp8 import FP8, converts_fp8, to_dot_dtype
from engine.kernels.triton.gpu import capability, processors_of
from engine.kernels.triton.merge_shares import Parts, min_share_tokens, share_tokens, tile_begin
from engine.kernels.triton.scores import LOG2_E, UNSEEN, base2_scores

_METADATA = ["slot_table", "rows", "tiles", "row_stride", "window"]


@triton.jit
def _attend_blocks(
    q_block,  # [BLOCK_M, BLOCK_D]
    peak,  # [BLOCK_M] float32: the highest score so far
    total,  # [BLOCK_M] float32: the sum of weights so far, relative to the peak
    mean,  # [BLOCK_M, BLOCK_DV] float32: the sum of weighted values so far
    begin,
    end,
    position,  # [BLOCK_M] int32, of the queries
    table,  # the row's slots
    k_head,  # [1, BLOCK_D] pointers to the head's K in slot 0
    v_head,  # [1, BLOCK_DV]
    k_stride,
    v_stride,
    scale,
    softcap,
    window,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_LAST: tl.constexpr,  # some queries may not see some of these keys, and the last block may be partial
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    DOT: tl.constexpr,
    AS_BITS: tl.constexpr,
):
    """Attends the queries to keys [begin, end); returns the new peak, total and mean."""
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    for block in range(begin, end, BLOCK_N):
        is_key = block + n < end
        if IS_LAST:
            slots = tl.load(table + block + n, mask=is_key, other=0).to(tl.int64)
            k = tl.load(
                k_head + slots[:, None] * k_stride, mask=is_key[:, None] & (d[None, :] < D), other=0.0
            )  # [BLOCK_N, BLOCK_D]
            v = tl.load(
                v_head + slots[:, None] * v_stride, mask=is_key[:, None] & (dv[None, :] < DV), other=0.0
            )  # [BLOCK_N, BLOCK_DV]
        else:  # whole blocks; a mask that does not depend on the block is free, and vanishes if D is a power of 2
            slots = tl.load(table + block + n).to(tl.int64)
            k = tl.load(k_head + slots[:, None] * k_stride, mask=d[None, :] < D, other=0.0)
            v = tl.load(v_head + slots[:, None] * v_stride, mask=dv[None, :] < DV, other=0.0)
        scores = tl.dot(q_block, tl.trans(to_dot_dtype(k, DOT, AS_BITS)), input_precision="tf32x3")
        scores = base2_scores(scores, scale, softcap, HAS_SOFTCAP)  # [BLOCK_M, BLOCK_N]
        if IS_LAST:
            seen = (block + n)[None, :] <= position[:, None]
            if HAS_WINDOW:
                seen &= (block + n)[None, :] > position[:, None] - window
            scores = tl.where(seen, scores, UNSEEN)
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        mean = mean * shrink[:, None]
        mean = tl.dot(weights.to(DOT), to_dot_dtype(v, DOT, AS_BITS), mean, input_precision="tf32x3")
        peak = new_peak
    return peak, total, mean


@triton.jit(do_not_specialize=_METADATA)
def _attend_chunk(
    q,  # [T, Hq, D]
    k_cache,  # [num_slots, Hkv, D]
    v_cache,  # [num_slots, Hkv, DV]
    out,  # [T, Hq, DV], written for tiles of one share
    part,  # [parts, Hq, DV] float32, written for other tiles: TILE queries for each of a tile's parts
    part_log,  # [parts, Hq] float32, likewise: log2 of the sum of the share's weights
    slot_table,  # [max_rows, max_model_len] int32
    rows,  # [4, R] int64
    tiles,  # [N, 5] int64
    sinks,  # [Hq]
    scale,
    softcap,
    window,
    row_stride,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    out_stride,
    out_head_stride,
    table_stride,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    TILE: tl.constexpr,  # tokens of a tile
    TOKENS: tl.constexpr,  # tokens of a program, which computes a part of a tile
    HEADS: tl.constexpr,  # query heads of a program, of one key/value head
    BLOCK_N: tl.constexpr,
    MIN_SHARE: tl.constexpr,
    SPLIT: tl.constexpr,  # whether these programs compute the tiles that are divided, or those that are not
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    DOT: tl.constexpr,
    AS_BITS: tl.constexpr,
):
    """Grid: (Hq / HEADS * TILE / TOKENS, N). A share's programs come first: they read the same K and V at the same
    time."""
    PIECES: tl.constexpr = TILE // TOKENS
    first_head = tl.program_id(0) // PIECES * HEADS
    item = tl.program_id(1)
    index = tl.load(tiles + 5 * item)
    tile_first = tl.load(tiles + 5 * item + 1).to(tl.int32)
    num_splits = tl.load(tiles + 5 * item + 3).to(tl.int32)
    first = tile_first + tl.program_id(0) % PIECES * TOKENS
    row = tl.load(rows + index)
    start = tl.load(rows + row_stride + index).to(tl.int32)
    count = tl.load(rows + 2 * row_stride + index).to(tl.int32)
    offset = tl.load(rows + 3 * row_stride + index)
    if row < 0:  # padding
        return
    if first >= count:
        return
    if (num_splits > 1) != SPLIT:
        return
    end = start + tl.minimum(first + TOKENS, count)
    if SPLIT:  # all programs of a tile divide its keys in the same way
        number = tl.load(tiles + 5 * item + 2).to(tl.int32)
        part_at = (tl.load(tiles + 5 * item + 4) + number) * TILE - tile_first
        begin = tile_begin(start, tile_first, window, BLOCK_N, HAS_WINDOW)
        length = start + tl.minimum(tile_first + TILE, count) - begin
        share = share_tokens(length, num_splits, BLOCK_N, MIN_SHARE)
        begin += number * share
        end = tl.minimum(end, begin + share)
    else:
        begin = tile_begin(start, first, window, BLOCK_N, HAS_WINDOW)
    if begin >= end:
        return

    BLOCK_M: tl.constexpr = TOKENS * HEADS
    r = tl.arange(0, BLOCK_M)
    token = first + r % TOKENS
    head = first_head + r // TOKENS
    kv_head = first_head // GROUP
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    is_query = token[:, None] < count
    q_block = tl.load(
        q + (offset + token)[:, None] * q_stride + head[:, None] * q_head_stride + d[None, :],
        mask=is_query & (d[None, :] < D),
        other=0.0,
    ).to(DOT)
    position = start + token
    table = slot_table + row * table_stride
    k_head = k_cache + kv_head * k_head_stride + d[None, :]
    v_head = v_cache + kv_head * v_head_stride + dv[None, :]
    peak = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mean = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)

    middle = tl.maximum((start + first + 1) // BLOCK_N * BLOCK_N, begin)
    # For two loops under a window or for a share, or for a `middle` without the maximum, ptxas 12.8 generates code for
    # 9.0 in which each product waits for the previous one (its warning C7515). A window has few keys, so one loop is
    # enough, and so is it for a share, which would leave most of the GPU idle otherwise.
    if HAS_WINDOW or SPLIT:
        middle = begin
    else:
        peak, total, mean = _attend_blocks(
            q_block, peak, total, mean, begin, middle, position, table, k_head, v_head, k_stride, v_stride,
            scale, softcap, window, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, False, HAS_WINDOW, HAS_SOFTCAP, DOT, AS_BITS,
        )  # fmt: skip
    peak, total, mean = _attend_blocks(
        q_block, peak, total, mean, middle, end, position, table, k_head, v_head, k_stride, v_stride,
        scale, softcap, window, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, True, HAS_WINDOW, HAS_SOFTCAP, DOT, AS_BITS,
    )  # fmt: skip

    if SPLIT:
        part_at = (part_at + token) * NUM_HEADS + head
        tl.store(
            part + part_at[:, None] * DV + dv[None, :],
            mean / total[:, None],
            is_query & (dv[None, :] < DV),
        )
        tl.store(part_log + part_at, peak + tl.log2(total), token < count)
    else:
        if HAS_SINKS:
            sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
            new_peak = tl.maximum(peak, sink)
            shrink = tl.exp2(peak - new_peak)
            total = total * shrink + tl.exp2(sink - new_peak)
            mean = mean * shrink[:, None]
        tl.store(
            out + (offset + token)[:, None] * out_stride + head[:, None] * out_head_stride + dv[None, :],
            (mean / total[:, None]).to(out.dtype.element_ty),
            is_query & (dv[None, :] < DV),
        )


def attend_chunks(inputs: AttentionInputs, layout: StepLayout) -> None:
    """Writes `inputs.out` at the tokens of the layout's rows with several tokens, and the parts of divided tiles."""
    rows, tiles, num_heads = layout.device, layout.tiles, inputs.q.shape[1]
    tiling = prefill_tiling_of(inputs)
    parts = Parts.of_tiles(inputs, layout)
    for is_split in (False, True) if len(layout.tile_merges) else (False,):
        _attend_chunk[(_programs_of_tile(num_heads, tiling), len(tiles))](
            inputs.q, inputs.k_cache, inputs.v_cache, inputs.out, parts.mean, parts.log,
            layout.slot_table, rows, tiles, inputs.sinks,
            inputs.scale, inputs.softcap, inputs.window, rows.stride(0),
            *inputs.q.stride()[:2], *inputs.k_cache.stride()[:2], *inputs.v_cache.stride()[:2],
            *inputs.out.stride()[:2], layout.slot_table.stride(0),
            NUM_HEADS=num_heads, TILE=CHUNK_TILE_TOKENS, TOKENS=tiling.tokens, HEADS=tiling.heads,
            BLOCK_N=tiling.block_n, MIN_SHARE=min_share_tokens(tiling.block_n), SPLIT=is_split,
            num_warps=tiling.num_warps, num_stages=tiling.num_stages, **inputs.constants,
        )  # fmt: skip


def tiles_at_once(num_heads: int, dtype: torch.dtype, k_cache: torch.Tensor, v_cache: torch.Tensor) -> int:
    """How many tiles, or shares of tiles, the GPU computes at once."""
    device = k_cache.device
    widest = padded(max(k_cache.shape[2], v_cache.shape[2]))
    as_bits = k_cache.dtype is FP8 and not converts_fp8(device)
    tiling = prefill_tiling(dtype, as_bits, widest, num_heads // k_cache.shape[1], capability(device))
    # By the resources that `benchmarks.kernel_resources` reports.
    per_processor = 2 if tiling.num_warps == 4 or (widest <= 64 and capability(device) >= (9, 0)) else 1
    return max(1, per_processor * processors_of(device).count // _programs_of_tile(num_heads, tiling))


def _programs_of_tile(num_heads: int, tiling: PrefillTiling) -> int:
    return num_heads // tiling.heads * (CHUNK_TILE_TOKENS // tiling.tokens)
