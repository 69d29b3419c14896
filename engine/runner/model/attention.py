"""The bridge between transformers' models and our attention op.

transformers lets a model's attention be chosen by name. Ours, `IMPLEMENTATION`, hands each layer's packed Q, K and V to
whatever step is current; no mask function stands under that name, so models build no masks. A second name,
`DISCOVERY`, is used once at load to learn from the model itself what its layers look like; its mask function does not
build a mask either, but says, in a tensor the layer gets in the mask's place, how far back that layer sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.dispatch import AttentionOp
from engine.kernels.layout import StepLayout
from engine.kernels.reference.attention import attend_sequence

IMPLEMENTATION = "bros"
DISCOVERY = "bros_discovery"

# Options of attention calls that change the result and that our op does not have: a model that sets one is refused.
_UNSUPPORTED_OPTIONS = {
    "position_bias": "it adds a position bias (as T5 or ALiBi do) to its attention scores",
    "indices": "it selects the tokens to attend to (sparse attention)",
    "head_mask": "it masks attention heads",
}


class UnsupportedAttention(Exception):
    """What a model's attention does that the op cannot; the text completes "cannot be served: ..."."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer keeps per token, and how far back it looks (None: to the start)."""

    num_kv_heads: int
    key_size: int
    value_size: int
    window: int | None


@dataclass(frozen=True, slots=True)
class LayerCache:
    """K and V of one layer, a row a slot."""

    k: torch.Tensor  # [num_slots, Hkv, D]
    v: torch.Tensor  # [num_slots, Hkv, Dv]
    window: int | None


class AttentionStep(Protocol):
    """Computes one layer's attention in the current forward pass. Q [T, Hq, D], K [T, Hkv, D], V [T, Hkv, Dv]."""

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        options: Mapping[str, Any],
    ) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class PackedStep:
    """The serving step: stores K and V of all rows' new tokens and attends through the slot table."""

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
        asked = AttentionOptions(scale, cache.window, options.get("softcap"), options.get("s_aux"))
        return self.op(q, k, v, cache.k, cache.v, self.layout, asked)


class Discovery:
    """Attends within one sequence and notes each layer's shape. Raises UnsupportedAttention."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}

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
        for option, reason in _UNSUPPORTED_OPTIONS.items():
            if options.get(option) is not None:
                raise UnsupportedAttention(reason)
        if q.shape[0] != k.shape[0]:
            raise UnsupportedAttention("it attends to something other than its own tokens (cross-attention)")
        if layer in self.layers:
            raise UnsupportedAttention("one of its attention layers runs more than once a token")
        # A layer that got no mask of transformers' making attends by the window it states, if any.
        window = _read_marker(mask) if mask is not None else options.get("sliding_window")
        self.layers[layer] = LayerShape(k.shape[1], k.shape[2], v.shape[2], window)
        asked = AttentionOptions(scale, window, options.get("softcap"), options.get("s_aux"))
        return attend_sequence(q, k, v, 0, asked)


_current: AttentionStep | None = None


@contextmanager
def attention_step(step: AttentionStep) -> Iterator[None]:
    """Makes `step` the one that models' attention layers call. One forward pass at a time, one thread."""
    global _current
    if _current is not None:
        raise RuntimeError("a forward pass is already under way; a process runs one at a time")
    _current = step
    try:
        yield
    finally:
        _current = None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, Hq, T, D]
    key: torch.Tensor,  # [1, Hkv, T, D]
    value: torch.Tensor,  # [1, Hkv, T, Dv]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:  # [1, T, Hq, Dv]
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


# What stands in a mask's place during discovery: the window, 0 for all of the past, or one of these. A model may build
# a mask that none of its layers uses, so nothing is refused before a layer gets it.
_UNSUPPORTED_MASKS = {
    -1: "its tokens attend to later tokens (it is no causal model)",
    -2: "it attends within chunks rather than a sliding window",
}


def _mark_mask(mask_function: Callable[..., torch.Tensor], **_: Any) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), _window_of(mask_function), dtype=torch.int64)


def _read_marker(mask: torch.Tensor) -> int | None:
    if mask.shape != (1, 1, 1, 1) or mask.dtype != torch.int64:
        raise UnsupportedAttention("it builds attention masks of its own")
    window = int(mask)
    if window < 0:
        raise UnsupportedAttention(_UNSUPPORTED_MASKS[window])
    return window or None


def _window_of(mask_function: Callable[..., torch.Tensor]) -> int:
    """The w for which position p sees exactly (p - w, p], 0 for [0, p], or a key of `_UNSUPPORTED_MASKS`.

    The function answers for any position, so windows longer than any sequence we could try are found by bisection.
    """

    def sees(query: int, key: int) -> bool:
        zero = torch.zeros((), dtype=torch.int64)
        return bool(mask_function(zero, zero, torch.tensor(query), torch.tensor(key)))

    far, farther = 2**24, 2**24 + 12_345
    if sees(far, far + 1):
        return -1
    if sees(far, 0):
        return 0
    low, high = 0, far  # sees(far, far - low), not sees(far, far - high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sees(far, far - middle) else (low, middle)
    is_window = sees(farther, farther - low) and not sees(farther, farther - high)
    return high if is_window else -2


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionInterface.register(DISCOVERY, _attention)
AttentionMaskInterface.register(DISCOVERY, _mark_mask)
