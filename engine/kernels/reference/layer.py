"""What a decoder layer computes between its matrix products and its attention, in simple PyTorch.

Shapes as in `engine.kernels.reference.attention`.
"""

from __future__ import annotations

import torch

from engine.kernels.reference.slots import store_kv


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x divided by its root mean square along the last dimension, times `weight` (arXiv 1910.07467), in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon) * weight.float()


def silu_gated(gate: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
    """SwiGLU's activation (arXiv 2002.05202), in float32."""
    return torch.nn.functional.silu(gate.float()) * partner.float()


def rotate_and_store(
    qkv: torch.Tensor,  # [T, (Hq + 2 Hkv) D]: heads of Q, then of K, then of V
    positions: torch.Tensor,  # [T] int64
    cos: torch.Tensor,  # [max positions, D / 2] float32
    sin: torch.Tensor,
    q_norm: torch.Tensor | None,  # [D] weight of an RMSNorm of each head before its rotation
    k_norm: torch.Tensor | None,
    epsilon: float,
    slots: torch.Tensor,  # [T] int64
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], written at `slots`
    v_cache: torch.Tensor,  # [num_slots, Hkv, D], written at `slots`
) -> torch.Tensor:  # [T, Hq, D] float32
    """Applies the rotary position embedding to Q and K (arXiv 2104.09864; it pairs a head's halves), stores K and V."""
    _, num_kv_heads, size = k_cache.shape
    heads = qkv.float().view(len(qkv), -1, size)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    q, k, v = heads.tensor_split([num_heads, num_heads + num_kv_heads], dim=1)
    rotated = []
    for x, norm in ((q, q_norm), (k, k_norm)):
        low, high = (x if norm is None else rms_norm(x, norm, epsilon)).chunk(2, dim=-1)
        c, s = cos[positions][:, None], sin[positions][:, None]
        rotated.append(torch.cat([low * c - high * s, high * c + low * s], dim=-1))
    store_kv(rotated[1], v, k_cache, v_cache, slots)
    return rotated[0]
