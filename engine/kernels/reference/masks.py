"""Masks of logits in simple PyTorch: the definition that tests compare the fast ones with."""

from __future__ import annotations

import torch


def apply_masks(
    logits: torch.Tensor,  # [n, V], changed
    rows: torch.Tensor,  # [m] int64, indices into n, none of them twice
    words: torch.Tensor,  # [m, >= V / 32] int32: bit b of word w is that of token 32 * w + b
) -> None:
    """Makes the logits of tokens whose bit is 0 minus infinity, in the given rows."""
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    is_allowed = ((words[:, :, None] >> bits) & 1).flatten(1)[:, : logits.shape[1]].bool()
    logits[rows] = logits[rows].masked_fill(~is_allowed, -torch.inf)
