"""The options of attention that a model's layer sets besides its Q, K and V."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class AttentionOptions:
    """One layer's options, the same in every step. Decoders build them once per layer, at load."""

    scale: float  # factor of a score, the product of a query and a key
    window: int | None = None  # w: position p sees only (p - w, p], as in transformers' sliding masks
    softcap: float | None = None  # c: a score s becomes c * tanh(s / c)
    # [Hq]: one extra score per head (an attention sink): part of the softmax, but without a value
    sinks: torch.Tensor | None = None
