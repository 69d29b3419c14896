"""The attention op in slow, obvious PyTorch: what every other backend is compared with, on any device.

Shapes: T packed tokens, Hq query heads, Hkv key/value heads (Hq a multiple of Hkv), D the head size of Q and K, Dv
that of V. A cache holds one row a slot; the tokens of a sequence may lie in any slots, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import StepLayout


def store_kv(
    k: torch.Tensor,  # [T, Hkv, D]
    v: torch.Tensor,  # [T, Hkv, Dv]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D]
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv]
    slot_mapping: torch.Tensor,  # [T] int64, no slot twice; -1: not stored
) -> None:
    """Writes each token's K and V to its slot, as the cache's dtype: float8 e4m3 without a scale, up to +-448."""
    stored = slot_mapping >= 0
    slots = slot_mapping[stored]
    for x, cache in ((k, k_cache), (v, v_cache)):
        if cache.dtype is torch.float8_e4m3fn:
            # Copied as bytes: torch has no indexed copies of float8.
            x = x.float().clamp(-448.0, 448.0).to(cache.dtype).view(torch.uint8)
            cache = cache.view(torch.uint8)
        cache.index_copy_(0, slots, x[stored].to(cache.dtype))


def gather_slots(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """A copy of the cache's rows at `slots` ([n] int64), in that order: [n, H, D]."""
    if cache.dtype is torch.float8_e4m3fn:
        return cache.view(torch.uint8).index_select(0, slots).view(cache.dtype)
    return cache.index_select(0, slots)


def scatter_slots(cache: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> None:
    """Writes `values` [n, H, D] to the cache's rows at `slots` [n] (int64, no slot twice)."""
    if cache.dtype is torch.float8_e4m3fn:
        cache, values = cache.view(torch.uint8), values.view(torch.uint8)
    cache.index_copy_(0, slots, values)


class SlotCopier:
    """Moves K and V of all layers between slots and rows of bytes, so that a token's lie side by side:

        staging[i]   | layer 0 K of slots[i] | layer 0 V | layer 1 K | ...
                     0                                                   bytes_per_slot

    Layers may differ in heads and sizes. A slot of -1 is skipped.
    """

    def __init__(self, caches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """`caches`: K [num_slots, Hkv, D] and V [num_slots, Hkv, Dv] of each layer, contiguous."""
        # [num_slots, bytes of a slot]
        self._caches = [cache.flatten(1).view(torch.uint8) for pair in caches for cache in pair]
        self.bytes_per_slot = sum(cache.shape[1] for cache in self._caches)

    def gather(
        self,
        slots: torch.Tensor,  # [n] int64, on the caches' device
        out: torch.Tensor
        | None = None,  # [n, bytes_per_slot] uint8, written; a row for slot -1 is left as it was
    ) -> torch.Tensor:  # [n, bytes_per_slot] uint8
        """What lies in `slots`."""
        if out is None:
            out = torch.empty(len(slots), self.bytes_per_slot, dtype=torch.uint8, device=slots.device)
        check_staging(slots, out, self.bytes_per_slot)
        kept = slots >= 0
        if self._caches:
            out[kept] = torch.cat([cache[slots[kept]] for cache in self._caches], dim=1)
        return out

    def scatter(
        self,
        slots: torch.Tensor,  # [n] int64, on the caches' device, none twice
        staging: torch.Tensor,  # [n, bytes_per_slot] uint8
    ) -> None:
        """Writes what `gather` gave to `slots`."""
        check_staging(slots, staging, self.bytes_per_slot)
        kept = slots >= 0
        begin = 0
        for cache in self._caches:
            cache[slots[kept]] = staging[kept, begin : begin + cache.shape[1]]
            begin += cache.shape[1]


def check_staging(slots: torch.Tensor, staging: torch.Tensor, bytes_per_slot: int) -> None:
    """Raises ValueError unless `staging` is [n, bytes_per_slot] uint8 for n slots, contiguous, on their device."""
    if slots.dtype is not torch.int64 or slots.dim() != 1:
        raise ValueError(f"slots are {slots.dtype} {list(slots.shape)}; a vector of int64 is needed")
    if (
        staging.dtype is not torch.uint8
        or staging.shape != (len(slots), bytes_per_slot)
        or staging.device != slots.device
        or not staging.is_contiguous()
    ):
        raise ValueError(
            f"{len(slots)} slots on {slots.device} need a contiguous uint8 buffer of {[len(slots), bytes_per_slot]} "
            f"there, not {staging.dtype} {list(staging.shape)} on {staging.device}"
        )


def attention(
    q: torch.Tensor,  # [T, Hq, D]
    k: torch.Tensor,  # [T, Hkv, D]
    v: torch.Tensor,  # [T, Hkv, Dv]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], written
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv], written
    layout: StepLayout,
    options: AttentionOptions,
) -> torch.Tensor:  # [T, Hq, Dv], q's dtype
    """Stores the step's K and V, then attends each query to its own sequence up to and including itself.

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
    """One sequence's causal attention with its context gathered in token order."""
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
    store_kv(turned[1], v, k_cache, v_cache, slots)
    return turned[0]
