"""The tables of rotary position embeddings, taken from a transformers model's own module."""

from __future__ import annotations

from typing import Any

import torch


def rotary_tables(rotary: Any, num_positions: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The cosines and sines that `rotary` computes, each [num_positions, D / 2], of the dtype and device of `like`."""
    with torch.inference_mode():
        cos, sin = rotary(like.new_empty(0), torch.arange(num_positions, device=like.device)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
