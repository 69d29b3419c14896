"""A loaded causal language model whose attention is ours: one packed forward pass per step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from engine.runner.kv.memory import LayerShape
from engine.runner.model.attention import PackedStep, attention_step
from engine.runner.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A model and what the engine needs to know about it; `loading.load_model` makes them."""

    model: Any  # a transformers PreTrainedModel
    device: torch.device
    dtype: torch.dtype
    layers: Mapping[int, LayerShape]
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    can_select_positions: bool  # `model` takes `logits_to_keep`
    fused: Decoder | None = None  # computes instead of `model` where there is one

    @torch.inference_mode()
    def forward(
        self,
        token_ids: torch.Tensor,  # [T] int64
        positions: torch.Tensor,  # [T] int64
        step: PackedStep,
        wanted: torch.Tensor,  # [n] int64, indices into T
    ) -> torch.Tensor:  # [n, vocab_size], float32 or the model's dtype
        """Returns the logits at the wanted tokens of one packed step."""
        if self.fused is not None:
            return self.fused.forward(token_ids, positions, step.layout, step.caches, wanted)
        selection = {"logits_to_keep": wanted} if self.can_select_positions else {}
        with attention_step(step):
            outputs = self.model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False, **selection
            )
        logits: torch.Tensor = outputs.logits[0]
        return logits if self.can_select_positions else logits[wanted]
