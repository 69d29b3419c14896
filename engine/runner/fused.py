"""Decoders of the Llama kind run by our own kernels: which models are of that kind, and how a CPU computes them.

On a CPU no module is called, no tensor is made an operation. (A GPU's decoder is in `fused_gpu`.)

A layer is nine calls: norm, QKV product, rotation and KV store, attention (one or two), output product added to the
residual, norm, gate and up product with its activation, down product added to the residual. The residual is float32
throughout. In the last layer only the tokens whose logits are wanted go on after their K and V are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from engine.kernels.cpu import attend_stored, is_compiled_for, plain
from engine.kernels.dispatch import backend_of
from engine.kernels.layout import StepLayout
from engine.runner.attention import LayerCache, LayerShape
from engine.runner.products import Weights, Workspace

Array = npt.NDArray[Any]

# Exactly these: a subclass may compute something else.
_KINDS = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
# Rotary embeddings that turn a position the same way however long the sequence is.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_NO_NORM = np.empty(0, dtype=np.float32)


class Decoder(Protocol):
    """A model taken apart, whose forward passes run by kernels of our own."""

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        layout: StepLayout,
        caches: Mapping[int, LayerCache],
        wanted: torch.Tensor,
    ) -> torch.Tensor:
        """See `FusedDecoder.forward`."""


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Array  # [H] float32
    epsilon: float

    @staticmethod
    def of(module: Any) -> _Norm:
        return _Norm(module.weight.detach().float().numpy(), module.variance_epsilon)


@dataclass(frozen=True, slots=True)
class _Layer:
    index: int
    attention_norm: _Norm
    qkv: Weights
    q_norm: Array  # [D] float32, or empty
    k_norm: Array
    scale: float
    output: Weights
    mlp_norm: _Norm
    gate_up: Weights
    down: Weights


class FusedDecoder:
    """Computes what the transformers model it was made of computes. Made by `fuse`; used from one thread."""

    def __init__(self, model: Any, head_size: int, num_positions: int) -> None:
        """Takes the model's weights over, layer by layer, so that only one layer's exist twice at a time."""
        from engine.kernels import cpu_layer, cpu_narrow
        from engine.kernels.cpu_linear import padded

        decoder = model.model
        self._kernels = cpu_layer
        self._workspace = Workspace()
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        fits = all(linear.in_features % cpu_narrow.STEP == 0 for linear in linears)
        self._is_narrow = model.dtype is torch.bfloat16 and fits and cpu_narrow.multiplier() is not None
        self._activations = np.uint16 if self._is_narrow else np.float32  # what products take
        self._head_size = head_size
        self._num_heads = model.config.num_attention_heads
        self._vocab_size = model.lm_head.weight.shape[0]
        self._embedding = plain(decoder.embed_tokens.weight.detach())
        self._width = padded(self._embedding.shape[1])
        cos, sin = rotations(decoder.rotary_emb, num_positions, torch.empty(0))
        self._cos, self._sin = cos.numpy(), sin.numpy()
        self._norm = _Norm.of(decoder.norm)
        self._head = self._take([model.lm_head])
        self._layers = [self._take_layer(layer) for layer in decoder.layers]

    def forward(
        self,
        token_ids: torch.Tensor,  # [T] int64
        positions: torch.Tensor,  # [T] int64
        layout: StepLayout,
        caches: Mapping[int, LayerCache],
        wanted: torch.Tensor,  # [n] int64, indices into T
    ) -> torch.Tensor:  # [n, vocab_size], of memory that the next call may overwrite
        """Logits at the wanted tokens of one packed step."""
        residual = self._workspace.take("residual", len(token_ids), self._width)
        self._kernels.embed(self._embedding, token_ids.numpy(), residual)
        for layer in self._layers:
            attended = self._attend(layer, residual, positions.numpy(), layout, caches[layer.index])
            if layer is self._layers[-1] and len(wanted) < len(token_ids):
                picked = wanted.numpy()
                residual = self._pick("picked residual", residual, picked)
                attended = self._pick("picked attended", attended, picked)
            if not len(residual):
                break
            layer.output.add(attended, residual)
            layer.down.add(layer.gate_up.gated(self._normed(residual, layer.mlp_norm)), residual)
        if not len(wanted):
            return torch.empty(0, self._vocab_size)
        logits = self._head.store(self._normed(residual, self._norm))
        return torch.from_numpy(logits)[:, : self._vocab_size]

    def _attend(
        self, layer: _Layer, residual: Array, positions: Array, layout: StepLayout, cache: LayerCache
    ) -> Array:
        """[T, Hq D], the layer's K and V stored."""
        num_tokens = len(residual)
        k_cache, v_cache = plain(cache.k), plain(cache.v)
        q = self._workspace.take("q", num_tokens, self._num_heads * self._head_size)
        out = self._workspace.take(
            "attended", num_tokens, self._num_heads * self._head_size, self._activations
        )
        heads = (num_tokens, self._num_heads, self._head_size)
        self._kernels.rotate_and_store(
            layer.qkv.store(self._normed(residual, layer.attention_norm)),
            positions,
            self._cos,
            self._sin,
            layer.q_norm,
            layer.k_norm,
            layer.attention_norm.epsilon,
            layout.slot_mapping.numpy(),
            k_cache,
            v_cache,
            q.reshape(heads),
        )
        attend_stored(
            q.reshape(heads),
            k_cache,
            v_cache,
            layout,
            scale=layer.scale,
            window=cache.window,
            out=out.reshape(heads),
        )
        return out

    def _normed(self, residual: Array, norm: _Norm) -> Array:
        out = self._workspace.take("normed", len(residual), len(norm.weight), self._activations)
        self._kernels.rms_norm(residual, norm.weight, norm.epsilon, out)
        return out

    def _pick(self, name: str, rows: Array, picked: Array) -> Array:
        out = self._workspace.take(name, len(picked), rows.shape[1], rows.dtype)
        np.take(rows, picked, axis=0, out=out)
        return out

    def _take_layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        has_head_norms = hasattr(attention, "q_norm")
        return _Layer(
            index=attention.layer_idx,
            attention_norm=_Norm.of(layer.input_layernorm),
            qkv=self._take([attention.q_proj, attention.k_proj, attention.v_proj]),
            q_norm=_Norm.of(attention.q_norm).weight if has_head_norms else _NO_NORM,
            k_norm=_Norm.of(attention.k_norm).weight if has_head_norms else _NO_NORM,
            scale=attention.scaling,
            output=self._take([attention.o_proj]),
            mlp_norm=_Norm.of(layer.post_attention_layernorm),
            gate_up=self._take([mlp.gate_proj, mlp.up_proj], is_gate=True),
            down=self._take([mlp.down_proj]),
        )

    def _take(self, linears: Sequence[nn.Linear], *, is_gate: bool = False) -> Weights:
        weights: list[torch.Tensor] = [linear.weight for linear in linears]
        biases: list[torch.Tensor] = [linear.bias for linear in linears]
        bias = None if biases[0] is None else torch.cat(biases)
        packed = Weights(weights, bias, self._workspace, is_narrow=self._is_narrow, is_gate=is_gate)
        for linear in linears:
            linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        return packed


def can_fuse(model: Any, layers: Mapping[int, LayerShape]) -> bool:
    """Whether every part of the model is one that a decoder of ours knows, on a device that it runs on."""
    match backend_of(model.device):
        case "cpu":
            runs = is_compiled_for(model.dtype)
        case "triton":
            runs = model.dtype in (torch.bfloat16, torch.float16, torch.float32)
        case _:
            runs = False
    return runs and is_known(model, layers)


def is_known(model: Any, layers: Mapping[int, LayerShape]) -> bool:
    """Whether the model is of the Llama kind in all that decides what it computes."""
    if type(model) not in _KINDS:
        return False
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return False
    decoder, config = model.model, model.config
    biased_parts = ("q_proj", "k_proj", "v_proj")
    return (
        config.hidden_act == "silu"
        and decoder.rotary_emb.rope_type in _ROPE_TYPES
        and all(
            type(part) is nn.Linear
            for name, part in model.named_modules()
            if name.endswith(("_proj", "lm_head"))
        )
        and all(
            part.bias is None or name.endswith(biased_parts)
            for name, part in model.named_modules()
            if isinstance(part, nn.Linear)
        )
        and sorted(layers) == list(range(len(decoder.layers)))
        and len({(layer.key_size, layer.value_size) for layer in layers.values()}) == 1
        and layers[0].key_size == layers[0].value_size == 2 * len(decoder.rotary_emb.inv_freq)
    )


def fuse(model: Any, layers: Mapping[int, LayerShape], max_model_len: int) -> Decoder:
    """Takes `model` apart: it cannot be called any more."""
    if backend_of(model.device) == "cpu":
        return FusedDecoder(model, layers[0].key_size, max_model_len)
    from engine.runner.fused_gpu import FusedGpuDecoder

    return FusedGpuDecoder(model, layers[0].key_size, max_model_len)


def rotations(rotary: Any, num_positions: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [num_positions, D / 2] of the model's own rotary embedding, in `like`'s dtype, on its device."""
    with torch.inference_mode():
        cos, sin = rotary(like.new_empty(0), torch.arange(num_positions, device=like.device)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
