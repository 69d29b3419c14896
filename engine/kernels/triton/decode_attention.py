"""Attention of rows that compute one token: contexts are split over many programs ("split-K"), then merged.

A step of such rows reads every token's K and V once and computes very little with them. For speed, enough reads must be
under way at any time on all multiprocessors, however few rows there are. So a row's context is split into shares, one
per program. Each program stores the softmax-weighted mean of its share's values and the logarithm of the sum of its
weights, and `_merge` computes the mean over all shares. The number of programs does not depend on the lengths of the
contexts; only the size of each share does. So a captured graph is correct for any lengths that it is replayed with.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.layout import StepLayout
from engine.kernels.triton.attention_inputs import AttentionInputs
from engine.kernels.triton.attention_tiling import decode_tiling
from engine.kernels.triton.fp8 import to_dot_dtype
from engine.kernels.triton.gpu import processors_of
from engine.kernels.triton.scores import LOG2_E, base2_scores

# A shorter share is not worth its cost in the merge.
MIN_SHARE_TOKENS = 128
# A multiprocessor runs two or three programs at a time; a few more balance contexts of unequal lengths.
PROGRAMS_PER_PROCESSOR = 4
# No program should read more than this, however many programs there are: it would end long after all others.
MAX_SHARE_TOKENS = 32768
# The number of shares that `_merge` reads at once.
_MERGE_BLOCK = 16

_METADATA = ["slot_table", "rows", "singles", "row_stride", "num_tokens", "window", "num_splits"]


@triton.jit
def _share_tokens(length, num_splits, BLOCK_N: tl.constexpr, MIN_SHARE: tl.constexpr):
    """The number of tokens per share of a context; the last shares may have fewer, or none."""
    blocks = tl.cdiv(tl.cdiv(length, num_splits), BLOCK_N)
    return tl.maximum(blocks * BLOCK_N, MIN_SHARE)


@triton.jit(do_not_specialize=_METADATA)
def _attend_single(
    q,  # [T, Hq, D]
    k_cache,  # [num_slots, Hkv, D]
    v_cache,  # [num_slots, Hkv, DV]
    out,  # [T, Hq, DV], written if not SPLIT
    part,  # [S, Hq, num_splits, DV] float32, written if SPLIT
    part_log,  # [S, Hq, num_splits] float32, written if SPLIT: log2 of the sum of the share's weights
    slot_table,  # [max_rows, max_model_len] int32
    rows,  # [4, R] int64
    singles,  # [S] int64
    sinks,  # [Hq]
    scale,
    softcap,
    window,
    row_stride,
    num_tokens,
    num_splits,
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
    BLOCK_G: tl.constexpr,  # query heads of a program; a matrix product has at least 16 rows
    BLOCK_N: tl.constexpr,
    MIN_SHARE: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    DOT: tl.constexpr,
    AS_BITS: tl.constexpr,
):
    """Grid: (Hkv * blocks of query heads, S, num_splits). Heads come first: those of one slot lie side by side and are
    read at the same time."""
    HEAD_BLOCKS: tl.constexpr = (GROUP + BLOCK_G - 1) // BLOCK_G
    kv_head = tl.program_id(0) // HEAD_BLOCKS
    single = tl.program_id(1)
    split = tl.program_id(2)
    index = tl.load(singles + single)
    row = tl.load(rows + index)
    token = tl.load(rows + 3 * row_stride + index)

    in_group = tl.program_id(0) % HEAD_BLOCKS * BLOCK_G + tl.arange(0, BLOCK_G)
    head = kv_head * GROUP + in_group
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    is_head = in_group[:, None] < GROUP
    out_at = out + token * out_stride + head[:, None] * out_head_stride + dv[None, :]
    is_out = is_head & (dv[None, :] < DV)
    if row < 0:  # padding
        if split == 0:
            tl.store(
                out_at, tl.zeros([BLOCK_G, BLOCK_DV], out.dtype.element_ty), is_out & (token < num_tokens)
            )
        return

    context = tl.load(rows + row_stride + index).to(tl.int32) + 1
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(context - window, 0)
    begin = first
    end = context
    if SPLIT:
        share = _share_tokens(context - first, num_splits, BLOCK_N, MIN_SHARE)
        begin = first + split * share
        end = tl.minimum(begin + share, context)
        if begin >= end:
            return

    q_block = tl.load(
        q + token * q_stride + head[:, None] * q_head_stride + d[None, :],
        mask=is_head & (d[None, :] < D),
        other=0.0,
    ).to(DOT)
    table = slot_table + row * table_stride
    k_head = k_cache + kv_head * k_head_stride + d[None, :]
    v_head = v_cache + kv_head * v_head_stride + dv[None, :]
    n = tl.arange(0, BLOCK_N)
    peak = tl.full([BLOCK_G], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    mean = tl.zeros([BLOCK_G, BLOCK_DV], tl.float32)
    # The slots of a block are read together with the block before it, so that reads of K and V never wait for slots.
    slots = tl.load(table + begin + n, mask=begin + n < end, other=0).to(tl.int64)
    for block in range(begin, end, BLOCK_N):
        seen = block + n < end  # [BLOCK_N]
        k = tl.load(
            k_head + slots[:, None] * k_stride, mask=seen[:, None] & (d[None, :] < D), other=0.0
        )  # [BLOCK_N, BLOCK_D]
        v = tl.load(
            v_head + slots[:, None] * v_stride, mask=seen[:, None] & (dv[None, :] < DV), other=0.0
        )  # [BLOCK_N, BLOCK_DV]
        ahead = block + BLOCK_N + n
        slots = tl.load(table + ahead, mask=ahead < end, other=0).to(tl.int64)
        scores = tl.dot(q_block, tl.trans(to_dot_dtype(k, DOT, AS_BITS)), input_precision="tf32x3")
        scores = base2_scores(scores, scale, softcap, HAS_SOFTCAP)
        scores = tl.where(seen[None, :], scores, -float("inf"))  # [BLOCK_G, BLOCK_N]
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        mean = mean * shrink[:, None]
        mean = tl.dot(weights.to(DOT), to_dot_dtype(v, DOT, AS_BITS), mean, input_precision="tf32x3")
        peak = new_peak

    if SPLIT:
        part_at = (single.to(tl.int64) * NUM_HEADS + head) * num_splits + split
        tl.store(part + part_at[:, None] * DV + dv[None, :], mean / total[:, None], is_out)
        tl.store(part_log + part_at, peak + tl.log2(total), in_group < GROUP)
    else:
        if HAS_SINKS:
            sink = tl.load(sinks + head, mask=in_group < GROUP, other=0.0).to(tl.float32) * LOG2_E
            new_peak = tl.maximum(peak, sink)
            shrink = tl.exp2(peak - new_peak)
            total = total * shrink + tl.exp2(sink - new_peak)
            mean = mean * shrink[:, None]
        tl.store(out_at, (mean / total[:, None]).to(out.dtype.element_ty), is_out)


@triton.jit(do_not_specialize=_METADATA)
def _merge(
    part,  # [S, Hq, num_splits, DV] float32
    part_log,  # [S, Hq, num_splits] float32
    out,  # [T, Hq, DV], written
    rows,  # [4, R] int64
    singles,  # [S] int64
    sinks,  # [Hq]
    window,
    row_stride,
    num_splits,
    out_stride,
    out_head_stride,
    NUM_HEADS: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    MIN_SHARE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Grid: (Hq, S)."""
    head = tl.program_id(0)
    single = tl.program_id(1)
    index = tl.load(singles + single)
    if tl.load(rows + index) < 0:  # padding, whose output is already zero
        return
    token = tl.load(rows + 3 * row_stride + index)
    length = tl.load(rows + row_stride + index).to(tl.int32) + 1
    if HAS_WINDOW:
        length = tl.minimum(length, window)
    num_shares = tl.cdiv(length, _share_tokens(length, num_splits, BLOCK_N, MIN_SHARE))

    s = tl.arange(0, BLOCK_S)
    dv = tl.arange(0, BLOCK_DV)
    peak = tl.full([1], -float("inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    if HAS_SINKS:
        peak = tl.zeros([1], tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2_E
        total += 1.0
    mean = tl.zeros([BLOCK_DV], tl.float32)
    base = (single.to(tl.int64) * NUM_HEADS + head) * num_splits
    for block in range(0, num_shares, BLOCK_S):
        has = block + s < num_shares
        logs = tl.load(part_log + base + block + s, mask=has, other=-float("inf"))  # [BLOCK_S]
        means = tl.load(
            part + (base + block + s)[:, None] * DV + dv[None, :],
            mask=has[:, None] & (dv[None, :] < DV),
            other=0.0,
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


def attend_singles(inputs: AttentionInputs, layout: StepLayout) -> None:
    """Writes `inputs.out` at the tokens of the layout's rows of one token."""
    num_singles = len(layout.singles)
    num_heads, num_kv_heads = inputs.q.shape[1], inputs.k_cache.shape[1]
    size_v = inputs.v_cache.shape[2]
    tiling = decode_tiling(
        inputs.constants["BLOCK_D"] + inputs.constants["BLOCK_DV"],
        inputs.k_cache.element_size(),
        inputs.q.element_size(),
        inputs.group,
    )
    head_blocks = num_kv_heads * -(-inputs.group // tiling.block_g)
    longest = layout.max_single_context
    if inputs.window:
        longest = min(longest, inputs.window)
    num_splits = choose_splits(num_singles * head_blocks, longest, processors_of(inputs.q.device).count)
    part = part_log = inputs.out
    if num_splits > 1:
        part, part_log = _parts(layout, num_heads, num_splits, size_v)
    rows, singles = layout.device, layout.singles
    constants = inputs.constants
    share = {
        "NUM_HEADS": num_heads,
        "BLOCK_N": tiling.block_n,
        "MIN_SHARE": max(tiling.block_n, MIN_SHARE_TOKENS),
    }
    _attend_single[(head_blocks, num_singles, num_splits)](
        inputs.q, inputs.k_cache, inputs.v_cache, inputs.out, part, part_log,
        layout.slot_table, rows, singles, inputs.sinks,
        inputs.scale, inputs.softcap, inputs.window, rows.stride(0), len(inputs.q), num_splits,
        *inputs.q.stride()[:2], *inputs.k_cache.stride()[:2], *inputs.v_cache.stride()[:2],
        *inputs.out.stride()[:2], layout.slot_table.stride(0),
        BLOCK_G=tiling.block_g, SPLIT=num_splits > 1, num_warps=tiling.num_warps, num_stages=tiling.num_stages,
        **constants, **share,
    )  # fmt: skip
    if num_splits > 1:
        _merge[(num_heads, num_singles)](
            part, part_log, inputs.out, rows, singles, inputs.sinks,
            inputs.window, rows.stride(0), num_splits, *inputs.out.stride()[:2],
            DV=size_v, BLOCK_DV=constants["BLOCK_DV"], BLOCK_S=_MERGE_BLOCK,
            HAS_WINDOW=constants["HAS_WINDOW"], HAS_SINKS=constants["HAS_SINKS"], num_warps=4, **share,
        )  # fmt: skip


def _parts(
    layout: StepLayout, num_heads: int, num_splits: int, size_v: int
) -> tuple[torch.Tensor, torch.Tensor]:  # [S, Hq, num_splits, Dv], [S, Hq, num_splits]
    """The buffers for shares, allocated once for all layers of a step. They live as long as the layout."""
    key = ("splits", num_heads, num_splits, size_v)
    if key not in layout.scratch:
        shape, device = (len(layout.singles), num_heads, num_splits), layout.device.device
        layout.scratch[key] = (
            torch.empty(*shape, size_v, dtype=torch.float32, device=device),
            torch.empty(shape, dtype=torch.float32, device=device),
        )
    part, part_log = layout.scratch[key]
    return part, part_log


def choose_splits(num_programs: int, longest: int, processors: int) -> int:
    """The number of shares per context, for contexts of up to `longest` tokens that take `num_programs` unsplit."""
    to_fill = PROGRAMS_PER_PROCESSOR * processors // num_programs
    useful = -(-longest // MIN_SHARE_TOKENS)
    return max(1, min(to_fill, useful), -(-longest // MAX_SHARE_TOKENS))
