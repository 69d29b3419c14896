"""A loaded causal language model whose attention is ours: one packed forward pass per step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import MoeModelOutputWithPast

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
    hidden_size: int = 0  # 0: `hidden` and `logits` do not work for this model

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

    @torch.inference_mode()
    def hidden(
        self,
        token_ids: torch.Tensor,  # [T] int64
        positions: torch.Tensor,  # [T] int64
        step: PackedStep,
        wanted: torch.Tensor,  # [n] int64, ascending indices into T
    ) -> torch.Tensor:  # [n, H], float32 or the model's dtype
        """Returns the hidden states after the final norm at the wanted tokens of one packed step."""
        if self.fused is not None:
            return self.fused.hidden(token_ids, positions, step.layout, step.caches, wanted)
        with attention_step(step):
            outputs = self.model.base_model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False
            )
        hidden: torch.Tensor = outputs.last_hidden_state[0]
        return hidden[wanted]

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits [n, vocab_size] of hidden states [n, H] that `hidden` returned, in memory that the next
        call may overwrite. `logits(hidden(...))` equals `forward(...)`."""
        if self.fused is not None:
            return self.fused.logits(hidden)
        nothing = torch.zeros((1, 1), dtype=torch.int64, device=self.device)
        with _answering(self.model.base_model, hidden[None]):
            logits: torch.Tensor = self.model(input_ids=nothing, use_cache=False).logits[0]
        return logits


class _Answer(MoeModelOutputWithPast):
    """The output of any kind of base model: fields that are not known here are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _answering(module: Any, hidden: torch.Tensor) -> Iterator[None]:
    """Lets the module answer with these hidden states, so that the model around it computes nothing but its head, with
    whatever scales or caps the logits."""
    answer = _Answer(last_hidden_state=hidden)
    module.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        del module.forward
