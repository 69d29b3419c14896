"""Changes to transformers' modules so that a step never makes the host wait for the GPU.

Such waits stall the engine, and a CUDA graph cannot capture them.
"""

from __future__ import annotations

from typing import Any

# These frequencies depend on the longest sequence of a batch, but not up to `checkpoint.longest_context`.
_LENGTH_DEPENDENT_ROPE_TYPES = ("dynamic", "longrope")


def remove_host_syncs(model: Any) -> None:
    """Turns off checks that read values from the device and that a served model does not need.

    GPT-2 and others look for padding among the token ids in order to warn about it. Some rotary embeddings look for
    the largest position.
    """
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = lambda *_: None
        if getattr(module, "rope_type", None) in _LENGTH_DEPENDENT_ROPE_TYPES:
            module.rope_type = "default"
