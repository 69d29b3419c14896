"""The bridge between transformers' models and our attention op.

transformers lets the attention of a model be chosen by name. Under the name `IMPLEMENTATION` it calls `call_step`,
which hands each layer's packed Q, K and V to the current `AttentionStep`. No mask function is registered under that
name, so models build no masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.dispatch import AttentionOp
from engine.kernels.layout import StepLayout
from engine.runner.kv.memory import LayerCache

IMPLEMENTATION = "bros"


class AttentionStep(Protocol):
    """Computes the attention of each layer in the current forward pass."""

    def attend(
        self,
        layer: int,
        q: torch.Tensor,  # [T, Hq, D]
        k: torch.Tensor,  # [T, Hkv, D]
        v: torch.Tensor,  # [T, Hkv, Dv]
        mask: torch.Tensor | None,
        scale: float,
        options: Mapping[str, Any],  # transformers' names for everything else
    ) -> torch.Tensor: ...  # [T, Hq, Dv]


@dataclass(frozen=True, slots=True)
class PackedStep:
    """The `AttentionStep` of serving: stores K and V of all new tokens, and attends through the slot table."""

    layout: StepLayout
    caches: Mapping[int, LayerCache]
    op: AttentionOp

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        cache = self.caches[layer]
        requested = AttentionOptions(scale, cache.window, options.get("softcap"), options.get("s_aux"))
        return self.op(q, k, v, cache.k, cache.v, self.layout, requested)


_current: AttentionStep | None = None


@contextmanager
def attention_step(step: AttentionStep) -> Iterator[None]:
    """Makes `step` the one that attention layers call. A process runs one forward pass at a time, on one thread."""
    global _current
    if _current is not None:
        raise RuntimeError("a forward pass is already under way; a process runs one at a time")
    _current = step
    try:
        yield
    finally:
        _current = None


def call_step(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, Hq, T, D]
    key: torch.Tensor,  # [1, Hkv, T, D]
    value: torch.Tensor,  # [1, Hkv, T, Dv]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:  # [1, T, Hq, Dv]
    """An attention function as transformers calls it: passes the layer on to the current `AttentionStep`."""
    if _current is None:
        raise RuntimeError("the model was called outside of attention_step()")
    out = _current.attend(
        module.layer_idx,  # type: ignore[arg-type]
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        attention_mask,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        options,
    )
    return out[None], None


AttentionInterface.register(IMPLEMENTATION, call_step)
