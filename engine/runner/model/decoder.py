"""Llama-like models on fused kernels: which models qualify, and which decoder computes them on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from engine.kernels.cpu.attention import is_compiled_for
from engine.kernels.dispatch import backend_of
from engine.kernels.layout import StepLayout
from engine.runner.kv.memory import LayerCache, LayerShape
from engine.runner.model.linear_fp8 import Fp8Linear

# Exactly these classes: a subclass may compute something else.
_MODEL_CLASSES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
# Rotary embeddings that rotate a position by the same angle however long the sequence is.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class Decoder(Protocol):
    """Computes a model's logits with fused kernels, in place of its transformers modules."""

    def forward(
        self,
        token_ids: torch.Tensor,  # [T] int64
        positions: torch.Tensor,  # [T] int64
        layout: StepLayout,
        caches: Mapping[int, LayerCache],
        wanted: torch.Tensor,  # [n] int64, indices into T
    ) -> torch.Tensor:  # [n, vocab_size]
        """Returns the logits at the wanted tokens of one packed step, in memory that the next call may overwrite."""

    def hidden(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        layout: StepLayout,
        caches: Mapping[int, LayerCache],
        wanted: torch.Tensor,  # in ascending order
    ) -> torch.Tensor:  # [n, H]
        """The first half of `forward`: returns the hidden states after the final norm."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The second half of `forward`, of any of the hidden states [n, H]: returns logits [n, vocab_size], in memory
        that the next call may overwrite."""


def can_fuse(model: Any, layers: Mapping[int, LayerShape]) -> bool:
    """Whether one of our decoders supports the model on its device, in its dtype."""
    match backend_of(model.device):
        case "cpu":
            is_fp8 = any(isinstance(module, Fp8Linear) for module in model.modules())
            is_supported = is_compiled_for(model.dtype) and not is_fp8
        case "triton":
            is_supported = model.dtype in (torch.bfloat16, torch.float16, torch.float32)
        case _:
            is_supported = False
    return is_supported and is_llama_like(model, layers)


def is_llama_like(model: Any, layers: Mapping[int, LayerShape]) -> bool:
    """Whether the model matches Llama in everything that affects its output."""
    if type(model) not in _MODEL_CLASSES:
        return False
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return False
    decoder, config = model.model, model.config
    may_have_bias = ("q_proj", "k_proj", "v_proj")
    return (
        config.hidden_act == "silu"
        and decoder.rotary_emb.rope_type in _ROPE_TYPES
        and all(
            type(module) in (nn.Linear, Fp8Linear)
            for name, module in model.named_modules()
            if name.endswith(("_proj", "lm_head"))
        )
        and all(
            module.bias is None or name.endswith(may_have_bias)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        )
        and sorted(layers) == list(range(len(decoder.layers)))
        and len({(layer.key_size, layer.value_size) for layer in layers.values()}) == 1
        and layers[0].key_size == layers[0].value_size == 2 * len(decoder.rotary_emb.inv_freq)
    )


def fuse(model: Any, layers: Mapping[int, LayerShape], max_model_len: int) -> Decoder:
    """Takes over the model's weights; the model itself can no longer be called."""
    # Imported here because each needs a compiler that is not installed everywhere: numba or Triton.
    if backend_of(model.device) == "cpu":
        from engine.runner.model.fused_cpu import CpuDecoder

        return CpuDecoder(model, layers, max_model_len)
    from engine.runner.model.fused_gpu import GpuDecoder

    return GpuDecoder(model, layers, max_model_len)
