"""Attention in Triton: for GPUs, and in tests on a CPU in Triton's interpreter."""

from __future__ import annotations

import torch

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import StepLayout
from engine.kernels.triton.attention_inputs import attention_inputs
from engine.kernels.triton.decode_attention import attend_singles
from engine.kernels.triton.merge_shares import merge_shares
from engine.kernels.triton.prefill_attention import attend_chunks
from engine.kernels.triton.slots import store_kv


def attention(
    q: torch.Tensor,  # [T, Hq, D]
    k: torch.Tensor,  # [T, Hkv, D]
    v: torch.Tensor,  # [T, Hkv, Dv]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], written
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv], written
    layout: StepLayout,
    options: AttentionOptions,
) -> torch.Tensor:  # [T, Hq, Dv], q's dtype
    """`engine.kernels.reference.attention`, fast on a GPU. Raises ValueError for shapes that do not match."""
    store_kv(k, v, k_cache, v_cache, layout.slot_mapping)
    out = torch.empty(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype, device=q.device)
    attend_stored(q, k_cache, v_cache, layout, options, out)
    return out


def attend_stored(
    q: torch.Tensor,  # [T, Hq, D]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], the step's own K stored
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv]
    layout: StepLayout,
    options: AttentionOptions,
    out: torch.Tensor,  # [T, Hq, Dv] of q's dtype, written
) -> None:
    """`attention` without its stores. The caches have q's dtype or float8 e4m3.

    One launch computes the rows with one new token, and another one the other rows. If contexts are divided, there is
    one more for the shares of the latter, and one that merges.

    Launches depend only on the layout's sizes. So a captured graph stays correct whatever is written to its layout's
    tensors later; the layout must live as long as the graph.
    """
    inputs = attention_inputs(q, k_cache, v_cache, options, out)
    if len(layout.shares):
        attend_singles(inputs, layout)
    if len(layout.tiles):
        attend_chunks(inputs, layout)
    if len(layout.merges) or len(layout.tile_merges):
        merge_shares(inputs, layout)
