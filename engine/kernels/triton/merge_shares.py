"""Merges what the shares of a context computed: the softmax-weighted mean of each share's values becomes that of all.

The attention kernels store a part for each share of a context that is divided: the mean of the share's values and the
logarithm of the sum of its weights. One launch merges the parts of rows of one token, and those of tiles of queries. It
does not depend on the contexts, so a captured graph is correct for any that it is replayed with.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl

from engine.kernels import shares as share_list
from engine.kernels.layout import CHUNK_TILE_TOKENS, StepLayout
from engine.kernels.triton.attention_inputs import AttentionInputs
from engine.kernels.triton.attention_tiling import decode_tiling_of, prefill_tiling_of
from engine.kernels.triton.gpu import processors_of
from engine.kernels.triton.scores import LOG2_E, UNSEEN

# What a multiprocessor runs at a time, of rows and of tiles.
_PROGRAMS_PER_PROCESSOR = 8
# The number of shares of a row that are read at once, and the queries of a tile that one program merges.
_ROW_SHARES, _TILE_QUERIES = 16, 16

_METADATA = ["rows", "merges", "tile_merges", "num_work", "row_stride", "window", "num_row_programs"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What shares computed, for each head."""

    mean: torch.Tensor  # [parts, Hq, Dv] float32
    log: torch.Tensor  # [parts, Hq] float32: log2 of the sum of a share's weights

    @staticmethod
    def of_rows(inputs: AttentionInputs, layout: StepLayout) -> Parts:
        """Those of rows of one token: one for each share. Without divided contexts there are none."""
        return _parts("rows", inputs, layout, len(layout.shares) if len(layout.merges) else 0)

    @staticmethod
    def of_tiles(inputs: AttentionInputs, layout: StepLayout) -> Parts:
        """Those of tiles: one for each share and each of a tile's queries."""
        num_shares = len(layout.tiles) if len(layout.tile_merges) else 0
        return _parts("tiles", inputs, layout, num_shares * CHUNK_TILE_TOKENS)


def _parts(kind: str, inputs: AttentionInputs, layout: StepLayout, count: int) -> Parts:
    """The buffers, allocated once for all layers of a step. They live as long as the layout."""
    num_heads, size_v = inputs.out.shape[1:]
    key = (kind, num_heads, size_v)
    if key not in layout.scratch:
        if count:
            new = partial(torch.empty, dtype=torch.float32, device=inputs.out.device)
            parts = Parts(new(count, num_heads, size_v), new(count, num_heads))
        else:  # of the same dtype, which a kernel is compiled for
            unused = layout.device.view(torch.float32)
            parts = Parts(unused, unused)
        layout.scratch[key] = parts
    found: Parts = layout.scratch[key]
    return found


def min_share_tokens(block_n: int) -> int:
    """The smallest share for a kernel that reads `block_n` tokens at a time."""
    return max(block_n, share_list.MIN_SHARE_TOKENS)


@triton.jit
def share_tokens(length, num_splits, BLOCK_N: tl.constexpr, MIN_SHARE: tl.constexpr):
    """The number of tokens per share of what a row or a tile reads, which is its context or a window of it; the last
    shares may have fewer, or none."""
    blocks = tl.cdiv(tl.cdiv(length, num_splits), BLOCK_N)
    return tl.maximum(blocks * BLOCK_N, MIN_SHARE)


@triton.jit
def tile_begin(start, first, window, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """The first token that a tile reads. Blocks that not even its first query sees are skipped."""
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(start + first + 1 - window, 0) // BLOCK_N * BLOCK_N
    return begin


@triton.jit
def _merge_row(
    item, head, part, part_log, out, rows, merges, sinks, window, row_stride, out_stride, out_head_stride,
    NUM_HEADS: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr, MIN_SHARE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    s = tl.arange(0, BLOCK_S)
    dv = tl.arange(0, BLOCK_DV)
    index = tl.load(merges + 3 * item)
    first_part = tl.load(merges + 3 * item + 1)
    num_splits = tl.load(merges + 3 * item + 2).to(tl.int32)
    token = tl.load(rows + 3 * row_stride + index)
    length = tl.load(rows + row_stride + index).to(tl.int32) + 1
    if HAS_WINDOW:
        length = tl.minimum(length, window)
    num_shares = tl.cdiv(length, share_tokens(length, num_splits, BLOCK_N, MIN_SHARE))

    peak = tl.full([1], -float("inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    if HAS_SINKS:
        peak = tl.zeros([1], tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2_E
        total += 1.0
    mean = tl.zeros([BLOCK_DV], tl.float32)
    for block in range(0, num_shares, BLOCK_S):
        has = block + s < num_shares
        part_at = (first_part + block + s) * NUM_HEADS + head
        logs = tl.load(part_log + part_at, mask=has, other=-float("inf"))  # [BLOCK_S]
        means = tl.load(
            part + part_at[:, None] * DV + dv[None, :], mask=has[:, None] & (dv[None, :] < DV), other=0.0
        )  # [BLOCK_S, BLOCK_DV]
        new_peak = tl.maximum(peak, tl.max(logs, 0))
        shrink = tl.exp2(peak - new_peak)
        weights = tl.exp2(logs - new_peak)
        total = total * shrink + tl.sum(weights, 0)
        mean = mean * shrink + tl.sum(means * weights[:, None], 0)
        peak = new_peak
    tl.store(
        out + token * out_stride + head * out_head_stride + dv,
        (mean / total).to(out.dtype.element_ty),
        dv < DV,
    )


@triton.jit
def _merge_queries(
    item, piece, head, part, part_log, out, rows, merges, sinks, window, row_stride, out_stride, out_head_stride,
    NUM_HEADS: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr,
    QUERIES: tl.constexpr, MIN_SHARE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    in_tile = piece * QUERIES + tl.arange(0, QUERIES)
    dv = tl.arange(0, BLOCK_DV)
    index = tl.load(merges + 4 * item)
    first = tl.load(merges + 4 * item + 1).to(tl.int32)
    first_part = tl.load(merges + 4 * item + 2)
    num_splits = tl.load(merges + 4 * item + 3).to(tl.int32)
    start = tl.load(rows + row_stride + index).to(tl.int32)
    count = tl.load(rows + 2 * row_stride + index).to(tl.int32)
    offset = tl.load(rows + 3 * row_stride + index)
    is_query = first + in_tile < count
    position = start + first + in_tile
    begin = tile_begin(start, first, window, BLOCK_N, HAS_WINDOW)
    end = start + tl.minimum(first + TILE, count)
    share = share_tokens(end - begin, num_splits, BLOCK_N, MIN_SHARE)

    peak = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    if HAS_SINKS:
        peak = tl.zeros([QUERIES], tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2_E
        total += 1.0
    mean = tl.zeros([QUERIES, BLOCK_DV], tl.float32)
    for number in range(tl.cdiv(end - begin, share)):
        # A share that begins after a query was not computed for it.
        has = is_query & (begin + number * share <= position)
        part_at = ((first_part + number) * TILE + in_tile) * NUM_HEADS + head
        log = tl.load(part_log + part_at, mask=has, other=UNSEEN)  # [QUERIES]
        means = tl.load(
            part + part_at[:, None] * DV + dv[None, :], mask=has[:, None] & (dv[None, :] < DV), other=0.0
        )  # [QUERIES, BLOCK_DV]
        new_peak = tl.maximum(peak, log)
        shrink = tl.exp2(peak - new_peak)
        weight = tl.exp2(log - new_peak)
        total = total * shrink + weight
        mean = mean * shrink[:, None] + means * weight[:, None]
        peak = new_peak
    tl.store(
        out + (offset + first + in_tile)[:, None] * out_stride + head * out_head_stride + dv[None, :],
        (mean / total[:, None]).to(out.dtype.element_ty),
        is_query[:, None] & (dv[None, :] < DV),
    )


@triton.jit(do_not_specialize=_METADATA)
def _merge(
    row_part,  # [parts, Hq, DV] float32
    row_part_log,  # [parts, Hq] float32
    tile_part,  # [parts, Hq, DV] float32
    tile_part_log,  # [parts, Hq] float32
    out,  # [T, Hq, DV], written
    rows,  # [4, R] int64
    merges,  # [M, 3] int64
    tile_merges,  # [K, 4] int64
    num_work,  # [3] int64
    sinks,  # [Hq]
    window,
    row_stride,
    out_stride,
    out_head_stride,
    num_row_programs,
    NUM_HEADS: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    ROW_BLOCK_N: tl.constexpr,
    ROW_MIN_SHARE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TILE_BLOCK_N: tl.constexpr,
    TILE_MIN_SHARE: tl.constexpr,
    TILE: tl.constexpr,
    QUERIES: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Grid: (Hq, programs among which the rows are dealt out, then those among which pieces of tiles are)."""
    PIECES: tl.constexpr = TILE // QUERIES
    head = tl.program_id(0)
    if tl.program_id(1) < num_row_programs:
        for item in range(tl.program_id(1), tl.load(num_work + 1).to(tl.int32), num_row_programs):
            _merge_row(
                item, head, row_part, row_part_log, out, rows, merges, sinks, window, row_stride, out_stride,
                out_head_stride, NUM_HEADS, DV, BLOCK_DV, ROW_BLOCK_N, BLOCK_S, ROW_MIN_SHARE, HAS_WINDOW, HAS_SINKS,
            )  # fmt: skip
    else:
        step = tl.num_programs(1) - num_row_programs
        num_pieces = tl.load(num_work + 2).to(tl.int32) * PIECES
        for item in range(tl.program_id(1) - num_row_programs, num_pieces, step):
            _merge_queries(
                item // PIECES, item % PIECES, head, tile_part, tile_part_log, out, rows, tile_merges, sinks, window,
                row_stride, out_stride, out_head_stride, NUM_HEADS, DV, BLOCK_DV, TILE_BLOCK_N, TILE, QUERIES,
                TILE_MIN_SHARE, HAS_WINDOW, HAS_SINKS,
            )  # fmt: skip


def merge_shares(inputs: AttentionInputs, layout: StepLayout) -> None:
    """Writes `inputs.out` at the tokens whose contexts were divided."""
    num_heads, size_v = inputs.out.shape[1:]
    row_parts, tile_parts = Parts.of_rows(inputs, layout), Parts.of_tiles(inputs, layout)
    row_block, tile_block = decode_tiling_of(inputs).block_n, prefill_tiling_of(inputs).block_n
    most = max(1, _PROGRAMS_PER_PROCESSOR * processors_of(inputs.q.device).count // num_heads)
    num_pieces = len(layout.tile_merges) * (CHUNK_TILE_TOKENS // _TILE_QUERIES)
    num_row_programs, num_tile_programs = min(len(layout.merges), most), min(num_pieces, most)
    _merge[(num_heads, num_row_programs + num_tile_programs)](
        row_parts.mean, row_parts.log, tile_parts.mean, tile_parts.log, inputs.out,
        layout.device, layout.merges, layout.tile_merges, layout.num_work, inputs.sinks,
        inputs.window, layout.device.stride(0), *inputs.out.stride()[:2], num_row_programs,
        NUM_HEADS=num_heads, DV=size_v, BLOCK_DV=inputs.constants["BLOCK_DV"],
        ROW_BLOCK_N=row_block, ROW_MIN_SHARE=min_share_tokens(row_block), BLOCK_S=_ROW_SHARES,
        TILE_BLOCK_N=tile_block, TILE_MIN_SHARE=min_share_tokens(tile_block), TILE=CHUNK_TILE_TOKENS,
        QUERIES=_TILE_QUERIES, HAS_WINDOW=inputs.constants["HAS_WINDOW"],
        HAS_SINKS=inputs.constants["HAS_SINKS"], num_warps=4,
    )  # fmt: skip
