"""Attention on a CPU by torch's own operations, for dtypes without compiled kernels and systems without numba."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import IntArray, StepLayout
from engine.kernels.reference.attention import attend_sequence, visible


def attend(
    q: torch.Tensor,  # [T, Hq, D]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], the step's own K stored
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv]
    layout: StepLayout,
    options: AttentionOptions,
    out: torch.Tensor,  # [T, Hq, Dv] float32, written
) -> None:
    """`engine.kernels.reference.attention` for a step whose K and V are already stored."""
    single = layout.single_token_rows
    if single.shape[1]:
        tokens = torch.from_numpy(single[3]).long()
        out[tokens] = _attend_singles(q[tokens], k_cache, v_cache, layout, single, options).float()
    for row, start, count, offset in layout.longer_rows.T.tolist():
        tokens_of_row = slice(offset, offset + count)
        out[tokens_of_row] = _attend_chunk(
            q[tokens_of_row], k_cache, v_cache, layout, row, start, options
        ).float()


def _attend_singles(
    q: torch.Tensor,  # [S, Hq, D]
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    layout: StepLayout,
    single: IntArray,
    options: AttentionOptions,
) -> torch.Tensor:  # [S, Hq, Dv]
    """Gathers the contexts of all rows into one rectangle and masks the rest of it."""
    ends = torch.from_numpy(single[4]).long()
    longest = int(ends.max())
    position = torch.arange(longest)
    seen = position < ends[:, None]  # [S, longest]
    if options.window is not None:
        seen &= position >= (ends - options.window)[:, None]
    table = layout.slot_table[torch.from_numpy(single[0]).long(), :longest].long()
    table = torch.where(seen, table, table[:, :1])  # masked positions read a slot that is known to be written
    group = q.shape[1] // k_cache.shape[1]
    keys = k_cache[table].float().repeat_interleave(group, dim=2)  # [S, longest, Hq, D]
    values = v_cache[table].float().repeat_interleave(group, dim=2)
    scores = torch.einsum("shd,skhd->shk", q.float(), keys) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    scores = scores.masked_fill(~seen[:, None, :], -torch.inf)
    if options.sinks is not None:
        sink_scores = options.sinks.float().view(1, -1, 1).expand(len(scores), -1, 1)
        scores = torch.cat([scores, sink_scores], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :longest]
    return torch.einsum("shk,skhd->shd", weights, values).to(q.dtype)


def _attend_chunk(
    q: torch.Tensor,  # [n, Hq, D], positions start, start + 1, ...
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    layout: StepLayout,
    row: int,
    start: int,
    options: AttentionOptions,
) -> torch.Tensor:  # [n, Hq, Dv]
    count, window = q.shape[0], options.window
    end = start + count
    # Under a window the first query sees (start - window, start]: nothing before that needs to be gathered.
    first = 0 if window is None else max(0, start + 1 - window)
    slots = layout.scratch.get(("slots", row, first))
    if slots is None:
        slots = layout.scratch[("slots", row, first)] = layout.slot_table[row, first:end].long()
    keys, values = k_cache.index_select(0, slots), v_cache.index_select(0, slots)  # [end - first, Hkv, D]
    if options.softcap is not None or options.sinks is not None:
        return attend_sequence(q, keys, values, start - first, options)
    is_plain_causal = first == start == 0 and (window is None or window >= count)
    mask = None
    if not is_plain_causal:
        mask = layout.scratch.get(("mask", row, window))
        if mask is None:
            mask = visible(start - first, count, window, q.device)
            layout.scratch[("mask", row, window)] = mask
    group = q.shape[1] // keys.shape[1]
    attended = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        _per_query_head(keys, group),
        _per_query_head(values, group),
        attn_mask=mask,
        is_causal=is_plain_causal,
        scale=options.scale,
    )  # [1, Hq, n, Dv]
    return attended[0].transpose(0, 1)


def _per_query_head(context: torch.Tensor, group: int) -> torch.Tensor:
    """[context, Hkv, D] -> [1, Hq, context, D]. Repeats heads as a view, which SDPA's CPU kernel reads in place."""
    length, num_heads, size = context.shape
    heads = context.transpose(0, 1)[:, None].expand(num_heads, group, length, size)
    return heads.reshape(1, num_heads * group, length, size)
