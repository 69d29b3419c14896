"""Attention on a CPU: compiled kernels, or where there is no compiler for them, SDPA and gathered contexts."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import IntArray, StepLayout
from engine.kernels.reference.attention import attend_sequence, visible
from engine.kernels.reference.slots import store_kv

HAS_NUMBA = importlib.util.find_spec("numba") is not None


def attention(
    q: torch.Tensor,  # [T, Hq, D]
    k: torch.Tensor,  # [T, Hkv, D]
    v: torch.Tensor,  # [T, Hkv, Dv]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], written
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv], written
    layout: StepLayout,
    options: AttentionOptions,
) -> torch.Tensor:  # [T, Hq, Dv], q's dtype
    """`engine.kernels.reference.attention`, fast."""
    store_kv(k, v, k_cache, v_cache, layout.slot_mapping)
    out = torch.empty(q.shape[0], q.shape[1], v.shape[2])
    if is_compiled_for(q.dtype):
        _attend_compiled(q, k_cache, v_cache, layout, options, out)
        return out.to(q.dtype)
    single = layout.single_token_rows
    if single.shape[1]:
        tokens = torch.from_numpy(single[3]).long()
        out[tokens] = _attend_single_padded(q[tokens], k_cache, v_cache, layout, single, options).float()
    for row, start, count, offset in layout.longer_rows.T.tolist():
        tokens_of_row = slice(offset, offset + count)
        out[tokens_of_row] = _attend_chunk(
            q[tokens_of_row], k_cache, v_cache, layout, row, start, options
        ).float()
    return out.to(q.dtype)


def is_compiled_for(dtype: torch.dtype) -> bool:
    """Whether the compiled kernels read caches of this dtype."""
    return HAS_NUMBA and dtype in (torch.float32, torch.bfloat16)


def plain(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as numpy sees it; numpy has no bfloat16, so those are their 16 bits."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()


_NO_SINKS = np.empty(0, dtype=np.float32)


def _attend_compiled(
    q: torch.Tensor,  # [T, Hq, D]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], the step's own K stored
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv]
    layout: StepLayout,
    options: AttentionOptions,
    out: torch.Tensor,  # [T, Hq, Dv] float32, written
) -> None:
    """`attention` without its stores, by the compiled kernels."""
    from engine.kernels.cpu import step_attention as cpu_attention
    from engine.kernels.cpu.scalars import use_threads

    num_kv_heads, size, size_v = k_cache.shape[1], k_cache.shape[2], v_cache.shape[2]
    num_threads = use_threads(torch.get_num_threads())
    keys, values = plain(k_cache), plain(v_cache)
    sinks = options.sinks
    cpu_attention.attend(
        q.float().contiguous().numpy(), keys, values, chunk_multiplier(keys.dtype, size, size_v),
        attention_work(layout, num_kv_heads, num_threads), np.float32(options.scale), options.window or 0,
        np.float32(options.softcap or 0.0), _NO_SINKS if sinks is None else sinks.detach().float().numpy(),
        out.numpy(),
    )  # fmt: skip


def chunk_multiplier(dtype: np.dtype[Any], size: int, size_v: int) -> Any:
    """What multiplies in `cpu_attention.attend` where rows have several new tokens, for caches of this (`plain`) dtype
    and these head sizes."""
    from engine.kernels.cpu import multiply_bf16 as cpu_narrow

    fits = dtype == np.uint16 and size % cpu_narrow.STEP == size_v % cpu_narrow.PANEL == 0
    return cpu_narrow.multiplier() if fits else None


def attention_work(layout: StepLayout, num_kv_heads: int, num_threads: int) -> tuple[Any, ...]:
    """A step's rows as `cpu_attention.attend` takes them, for all layers with so many key/value heads."""
    work = layout.scratch.get(("work", num_kv_heads))
    if work is None:
        single, longer = layout.single_token_rows, layout.longer_rows
        num_single, num_longer = single.shape[1], longer.shape[1]
        # Rows enough for all threads: one unit a row. Else heads are split too, so that no thread idles.
        heads_per_unit = num_kv_heads if num_single >= 4 * num_threads else 1
        parts = -(-2 * num_threads // (num_longer * num_kv_heads)) if num_longer else 1
        order = _balanced_order(single[4], num_threads)
        work = (layout.slot_table.numpy(), single, order, longer, heads_per_unit, parts)
        layout.scratch["work", num_kv_heads] = work
    return work


def _balanced_order(ends: IntArray, num_threads: int) -> IntArray:
    """Rows by context length, dealt out like cards: each thread's contiguous share is then equally long."""
    by_length = np.argsort(ends)
    order = np.concatenate([by_length[thread::num_threads] for thread in range(num_threads)])
    return order.astype(np.int32)


def _attend_single_padded(
    q: torch.Tensor,  # [S, Hq, D]
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    layout: StepLayout,
    single: IntArray,
    options: AttentionOptions,
) -> torch.Tensor:  # [S, Hq, Dv]
    """The same without a compiler: contexts gathered into one rectangle, the rest of it masked."""
    ends = torch.from_numpy(single[4]).long()
    longest = int(ends.max())
    position = torch.arange(longest)
    seen = position < ends[:, None]  # [S, longest]
    if options.window is not None:
        seen &= position >= (ends - options.window)[:, None]
    table = layout.slot_table[torch.from_numpy(single[0]).long(), :longest].long()
    table = torch.where(seen, table, table[:, :1])  # padding reads a slot that is known to be written
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
    # Under a window the oldest query sees (start - window, start]: nothing before that needs gathering.
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
    """[context, Hkv, D] -> [1, Hq, context, D]; repeated as a view, which SDPA's CPU kernel reads in place."""
    length, num_heads, size = context.shape
    heads = context.transpose(0, 1)[:, None].expand(num_heads, group, length, size)
    return heads.reshape(1, num_heads * group, length, size)
