"""Attention in simple PyTorch, for any device: the definition that tests compare the other backends with.

Shapes: T packed tokens, Hq query heads, Hkv key/value heads (Hq a multiple of Hkv), D the head size of Q and K, Dv
that of V. A cache holds one row per slot; the tokens of a sequence may lie in any slots, in any order.
"""

from __future__ import annotations

import torch

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import StepLayout
from engine.kernels.reference.slots import gather_slots, store_kv


def attention(
    q: torch.Tensor,  # [T, Hq, D]
    k: torch.Tensor,  # [T, Hkv, D]
    v: torch.Tensor,  # [T, Hkv, Dv]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], written
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv], written
    layout: StepLayout,
    options: AttentionOptions,
) -> torch.Tensor:  # [T, Hq, Dv], q's dtype
    """Stores the step's K and V, then attends each query to its own sequence, up to and including itself.

    Scores, softmax and the weighted sum are in float32.
    """
    store_kv(k, v, k_cache, v_cache, layout.slot_mapping)
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype, device=q.device)
    for row, start, count, offset in layout.host.T.tolist():
        if row < 0:  # padding
            continue
        slots = layout.slot_table[row, : start + count].long()
        tokens = slice(offset, offset + count)
        out[tokens] = attend_sequence(
            q[tokens],
            gather_slots(k_cache, slots),
            gather_slots(v_cache, slots),
            start,
            options,
        )
    return out


def attend_sequence(
    q: torch.Tensor,  # [n, Hq, D], queries at positions start, start + 1, ...
    keys: torch.Tensor,  # [start + n, Hkv, D]
    values: torch.Tensor,  # [start + n, Hkv, Dv]
    start: int,
    options: AttentionOptions,
) -> torch.Tensor:  # [n, Hq, Dv]
    """Causal attention of one sequence whose context is gathered in the order of its tokens."""
    count, num_heads, _ = q.shape
    group = num_heads // keys.shape[1]
    keys = keys.float().repeat_interleave(group, dim=1)  # [context, Hq, D]
    values = values.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    scores = scores.masked_fill(~visible(start, count, options.window, q.device), -torch.inf)
    if options.sinks is not None:
        sink_scores = options.sinks.float().view(-1, 1, 1).expand(-1, count, 1)
        weights = torch.softmax(torch.cat([scores, sink_scores], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)


def visible(start: int, count: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[count, start + count] bool: the positions that the queries at start, start + 1, ... may read."""
    query = torch.arange(start, start + count, device=device)[:, None]
    key = torch.arange(start + count, device=device)[None, :]
    mask = key <= query
    if window is not None:
        mask &= key > query - window
    return mask
