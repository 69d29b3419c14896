"""What a model's layer asks of attention, beside its Q, K and V."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class AttentionOptions:
    """One layer's way of attending, the same in every step: built once per layer where the layer is known at load."""

    scale: float  # of a score: the product of a query and a key
    window: int | None = None  # w: position p sees only (p - w, p], as in transformers' sliding masks
    softcap: float | None = None  # c: a score s becomes c * tanh(s / c)
    sinks: torch.Tensor | None = (
        None  # [Hq]: one more score per head, which takes probability and has no value
    )
