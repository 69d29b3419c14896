"""The attention op in slow, obvious PyTorch: what every other backend is compared with, on any device.

Shapes: T packed tokens, Hq query heads, Hkv key/value heads (Hq a multiple of Hkv), D the head size of Q and K, Dv
that of V. A cache holds one row a slot; the tokens of a sequence may lie in any slots, in any order.
"""

from __future__ import annotations

import torch

from engine.kernels.layout import StepLayout


def store_kv(
    k: torch.Tensor,  # [T, Hkv, D]
    v: torch.Tensor,  # [T, Hkv, Dv]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D]
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv]
    slot_mapping: torch.Tensor,  # [T] int64, no slot twice
) -> None:
    """Writes each token's K and V to its slot."""
    k_cache.index_copy_(0, slot_mapping, k)
    v_cache.index_copy_(0, slot_mapping, v)


def gather_slots(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """A copy of the cache's rows at `slots` ([n] int64), in that order: [n, H, D]."""
    return cache.index_select(0, slots)


def scatter_slots(cache: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> None:
    """Writes `values` [n, H, D] to the cache's rows at `slots` [n] (int64, no slot twice)."""
    cache.index_copy_(0, slots, values)


def attention(
    q: torch.Tensor,  # [T, Hq, D]
    k: torch.Tensor,  # [T, Hkv, D]
    v: torch.Tensor,  # [T, Hkv, Dv]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], written
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv], written
    layout: StepLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,  # [Hq]
) -> torch.Tensor:  # [T, Hq, Dv], q's dtype
    """Stores the step's K and V, then attends each query to its own sequence up to and including itself.

    `window` w lets position p see (p - w, p], as transformers' sliding masks do. `softcap` c replaces a score s by
    c * tanh(s / c). `sinks` are one more score a head that takes probability and gives no value. Scores, softmax
    and the weighted sum are in float32.
    """
    store_kv(k, v, k_cache, v_cache, layout.slot_mapping)
    out = torch.empty(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype, device=q.device)
    for row, start, count, offset in layout.host.T.tolist():
        slots = layout.slot_table[row, : start + count].long()
        tokens = slice(offset, offset + count)
        out[tokens] = attend_sequence(
            q[tokens],
            gather_slots(k_cache, slots),
            gather_slots(v_cache, slots),
            start,
            scale=scale,
            window=window,
            softcap=softcap,
            sinks=sinks,
        )
    return out


def attend_sequence(
    q: torch.Tensor,  # [n, Hq, D], queries at positions start, start + 1, ...
    keys: torch.Tensor,  # [start + n, Hkv, D]
    values: torch.Tensor,  # [start + n, Hkv, Dv]
    start: int,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:  # [n, Hq, Dv]
    """One sequence's causal attention with its context gathered in token order."""
    count, num_heads, _ = q.shape
    group = num_heads // keys.shape[1]
    keys = keys.float().repeat_interleave(group, dim=1)  # [context, Hq, D]
    values = values.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible(start, count, window, q.device), -torch.inf)
    if sinks is not None:
        sink_scores = sinks.float().view(-1, 1, 1).expand(-1, count, 1)
        weights = torch.softmax(torch.cat([scores, sink_scores], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)


def visible(start: int, count: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[count, start + count] bool: which positions the queries at start, start + 1, ... may read."""
    query = torch.arange(start, start + count, device=device)[:, None]
    key = torch.arange(start + count, device=device)[None, :]
    mask = key <= query
    if window is not None:
        mask &= key > query - window
    return mask


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x over the root of its mean square, times `weight`, along the last dimension (arXiv 1910.07467); float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon) * weight.float()


def silu_gated(gate: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
    """SwiGLU's activation (arXiv 2002.05202), in float32."""
    return torch.nn.functional.silu(gate.float()) * partner.float()


def rotate_and_store(
    qkv: torch.Tensor,  # [T, (Hq + 2 Hkv) D]: heads of Q, then of K, then of V
    positions: torch.Tensor,  # [T] int64
    cos: torch.Tensor,  # [positions there are, D / 2] float32
    sin: torch.Tensor,
    q_norm: torch.Tensor | None,  # [D] weight of an RMSNorm of each head, before it is turned
    k_norm: torch.Tensor | None,
    epsilon: float,
    slots: torch.Tensor,  # [T] int64
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], written at `slots`
    v_cache: torch.Tensor,  # [num_slots, Hkv, D], written at `slots`
) -> torch.Tensor:  # [T, Hq, D] float32
    """Rotary position embedding of Q and K (arXiv 2104.09864; a head's halves are the pairs), K and V stored."""
    _, num_kv_heads, size = k_cache.shape
    heads = qkv.float().view(len(qkv), -1, size)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    q, k, v = heads.tensor_split([num_heads, num_heads + num_kv_heads], dim=1)
    turned = []
    for x, norm in ((q, q_norm), (k, k_norm)):
        low, high = (x if norm is None else rms_norm(x, norm, epsilon)).chunk(2, dim=-1)
        c, s = cos[positions][:, None], sin[positions][:, None]
        turned.append(torch.cat([low * c - high * s, high * c + low * s], dim=-1))
    store_kv(turned[1].to(k_cache.dtype), v.to(v_cache.dtype), k_cache, v_cache, slots)
    return turned[0]
