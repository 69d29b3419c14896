"""What transformers' models do in each step for which the host waits for a GPU, and of which no CUDA graph can be made:
left out where a served model needs none of it."""

from __future__ import annotations

from typing import Any

# Their frequencies change with a batch's longest sequence, but not up to the length that such models are served to.
_CHANGING_ROPE_TYPES = ("dynamic", "longrope")


def keep_from_waiting(model: Any) -> None:
    """GPT-2 and others look for padding among a step's token ids, to warn of it; rotary embeddings of some kinds look
    for the largest position. `engine.runner.model.causal_lm.longest_context` says how far those are served."""
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = lambda *_: None
        if getattr(module, "rope_type", None) in _CHANGING_ROPE_TYPES:
            module.rope_type = "default"
