"""Learns the shape of every attention layer from the model itself, in one short forward pass.

The pass uses an attention implementation of its own, `DISCOVERY`. Its mask function builds no mask but returns a marker
tensor, which tells each layer how far back it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.reference.attention import attend_sequence
from engine.runner.kv.memory import LayerShape
from engine.runner.model.attention import IMPLEMENTATION, attention_step, call_step

DISCOVERY = "bros_discovery"

_NUM_TOKENS = 24
# Options of attention calls that change the result and that our op does not support.
_UNSUPPORTED_OPTIONS = {
    "position_bias": "it adds a position bias (as T5 or ALiBi do) to its attention scores",
    "indices": "it selects the tokens to attend to (sparse attention)",
    "head_mask": "it masks attention heads",
}
# A marker is a window, or 0 for all of the past, or one of these. A mask is rejected only when a layer receives
# it, because a model may build masks that none of its layers uses.
_UNSUPPORTED_MASKS = {
    -1: "its tokens attend to later tokens (it is not a causal model)",
    -2: "its attention is neither full nor a sliding window (chunked, for example)",
}


class UnsupportedAttention(Exception):
    """The model's attention does something that our op cannot do. The message completes "cannot be served: ..."."""


def discover_layers(model: PreTrainedModel) -> dict[int, LayerShape]:
    """Returns the shape of every attention layer, by layer index. Raises ValueError that says why the model is
    not supported."""
    token_ids = (
        torch.arange(_NUM_TOKENS, device=model.device)[None] % model.config.get_text_config().vocab_size
    )
    positions = torch.arange(_NUM_TOKENS, device=model.device)[None]
    discovery = _Discovery()
    model.set_attn_implementation(DISCOVERY)
    try:
        with torch.inference_mode(), attention_step(discovery):
            model(input_ids=token_ids, position_ids=positions, use_cache=False)
    except UnsupportedAttention as error:
        raise ValueError(str(error)) from error
    finally:
        model.set_attn_implementation(IMPLEMENTATION)
    if not discovery.layers:
        raise ValueError(
            "its attention cannot be replaced (it has none, or predates transformers' AttentionInterface)"
        )
    return discovery.layers


class _Discovery:
    """An `AttentionStep` that attends within one sequence and notes the shape of each layer."""

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
            raise UnsupportedAttention("one of its attention layers runs more than once per token")
        # A layer that receives no mask from transformers attends by the window that it passes itself, if any.
        window = _read_marker(mask) if mask is not None else options.get("sliding_window")
        self.layers[layer] = LayerShape(q.shape[1], k.shape[1], k.shape[2], v.shape[2], window)
        requested = AttentionOptions(scale, window, options.get("softcap"), options.get("s_aux"))
        return attend_sequence(q, k, v, 0, requested)


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
    """The w for which position p sees exactly (p - w, p], or 0 for [0, p], or a key of `_UNSUPPORTED_MASKS`.

    The mask function answers for any position, so bisection finds windows longer than any sequence we could try.
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


AttentionInterface.register(DISCOVERY, call_step)
AttentionMaskInterface.register(DISCOVERY, _mark_mask)
