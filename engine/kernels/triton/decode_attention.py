"""Attention of rows that compute one token: contexts are read in shares ("split-K"), whose results are merged.

A step of such rows reads every token's K and V once and computes very little with them. For speed, enough reads must be
under way at any time on all multiprocessors. So as many programs are launched as run at once, and each takes one share
after another from the step's list (see `engine.kernels.shares`). A program that reads a whole context writes the row's
output. One that reads a share of it stores a part, which `merge_shares` merges with the others. The launches do not
depend on the contexts, so a captured graph is correct for any that it is replayed with.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.layout import StepLayout
from engine.kernels.triton.attention_inputs import AttentionInputs
from engine.kernels.triton.attention_tiling import decode_tiling_of
from engine.kernels.triton.fp8 import to_dot_dtype
from engine.kernels.triton.gpu import processors_of
from engine.kernels.triton.merge_shares import Parts, min_share_tokens, share_tokens
from engine.kernels.triton.scores import LOG2_E, base2_scores

# What a multiprocessor runs at a time, by the resources that `benchmarks.kernel_resources` reports: three programs with
# 16-bit caches, whose tiles take up to 71 KiB of shared memory, and two with others, which need more registers.
_SHARED_BYTES, _MOST_PROGRAMS, _MOST_OTHERS = 72 * 1024, 3, 2

_METADATA = ["slot_table", "rows", "shares", "num_work", "row_stride", "window"]


@triton.jit(do_not_specialize=_METADATA)
def _attend_single(
    q,  # [T, Hq, D]
    k_cache,  # [num_slots, Hkv, D]
    v_cache,  # [num_slots, Hkv, DV]
    out,  # [T, Hq, DV], written for rows of one share
    part,  # [parts, Hq, DV] float32, written for rows of more than one
    part_log,  # [parts, Hq] float32, likewise: log2 of the sum of the share's weights
    slot_table,  # [max_rows, max_model_len] int32
    rows,  # [4, R] int64
    shares,  # [W, 4] int64
    num_work,  # [3] int64
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
    BLOCK_G: tl.constexpr,  # query heads of a program; a matrix product has at least 16 rows
    BLOCK_N: tl.constexpr,
    MIN_SHARE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    DOT: tl.constexpr,
    AS_BITS: tl.constexpr,
):
    """Grid: (Hkv * blocks of query heads, programs among which the shares are dealt out). Heads come first: those of
    one slot lie side by side and are read at the same time."""
    HEAD_BLOCKS: tl.constexpr = (GROUP + BLOCK_G - 1) // BLOCK_G
    kv_head = tl.program_id(0) // HEAD_BLOCKS
    in_group = tl.program_id(0) % HEAD_BLOCKS * BLOCK_G + tl.arange(0, BLOCK_G)
    head = kv_head * GROUP + in_group
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    n = tl.arange(0, BLOCK_N)
    is_head = in_group[:, None] < GROUP
    is_out = is_head & (dv[None, :] < DV)
    k_head = k_cache + kv_head * k_head_stride + d[None, :]
    v_head = v_cache + kv_head * v_head_stride + dv[None, :]

    num_shares = tl.load(num_work).to(tl.int32)
    for item in range(tl.program_id(1), num_shares, tl.num_programs(1)):
        index = tl.load(shares + 4 * item)
        number = tl.load(shares + 4 * item + 1).to(tl.int32)
        num_splits = tl.load(shares + 4 * item + 2).to(tl.int32)
        first_part = tl.load(shares + 4 * item + 3)
        row = tl.load(rows + index)
        context = tl.load(rows + row_stride + index).to(tl.int32) + 1
        token = tl.load(rows + 3 * row_stride + index)
        out_at = out + token * out_stride + head[:, None] * out_head_stride + dv[None, :]
        first = 0
        if HAS_WINDOW:
            first = tl.maximum(context - window, 0)
        share = share_tokens(context - first, num_splits, BLOCK_N, MIN_SHARE)
        begin = first + number * share
        end = tl.minimum(begin + share, context)
        if row < 0:  # padding
            tl.store(out_at, tl.zeros([BLOCK_G, BLOCK_DV], out.dtype.element_ty), is_out)
        elif begin < end:
            q_block = tl.load(
                q + token * q_stride + head[:, None] * q_head_stride + d[None, :],
                mask=is_head & (d[None, :] < D),
                other=0.0,
            ).to(DOT)
            table = slot_table + row * table_stride
            peak = tl.full([BLOCK_G], -float("inf"), tl.float32)
            total = tl.zeros([BLOCK_G], tl.float32)
            mean = tl.zeros([BLOCK_G, BLOCK_DV], tl.float32)
            # The slots of a block are read together with the block before it, so that K and V never wait for slots.
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
            if num_splits > 1:
                part_at = (first_part + number) * NUM_HEADS + head
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


def attend_singles(inputs: AttentionInputs, layout: StepLayout) -> None:
    """Writes `inputs.out` at the tokens of the rows in the layout's shares."""
    num_heads, num_kv_heads = inputs.q.shape[1], inputs.k_cache.shape[1]
    tiling = decode_tiling_of(inputs)
    head_blocks = num_kv_heads * -(-inputs.group // tiling.block_g)
    parts, rows = Parts.of_rows(inputs, layout), layout.device
    _attend_single[(head_blocks, min(len(layout.shares), shares_at_once(head_blocks, inputs.k_cache)))](
        inputs.q, inputs.k_cache, inputs.v_cache, inputs.out, parts.mean, parts.log,
        layout.slot_table, rows, layout.shares, layout.num_work, inputs.sinks,
        inputs.scale, inputs.softcap, inputs.window, rows.stride(0),
        *inputs.q.stride()[:2], *inputs.k_cache.stride()[:2], *inputs.v_cache.stride()[:2],
        *inputs.out.stride()[:2], layout.slot_table.stride(0),
        NUM_HEADS=num_heads, BLOCK_G=tiling.block_g, BLOCK_N=tiling.block_n,
        MIN_SHARE=min_share_tokens(tiling.block_n),
        num_warps=tiling.num_warps, num_stages=tiling.num_stages, **inputs.constants,
    )  # fmt: skip


def shares_at_once(head_blocks: int, cache: torch.Tensor) -> int:
    """How many shares the GPU reads at once, each by one program for each of `head_blocks` groups of heads."""
    processors = processors_of(cache.device)
    most = _MOST_PROGRAMS if cache.element_size() == 2 else _MOST_OTHERS
    per_processor = max(1, min(most, processors.shared_bytes // _SHARED_BYTES))
    return max(1, per_processor * processors.count // head_blocks)
