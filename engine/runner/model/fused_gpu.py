"""Decoders of the Llama kind on a GPU: products by torch or our own kernel, all between them by Triton kernels.

A layer is nine or ten launches:

    residual += x; norm | QKV product | head norms, rotation, KV store | attention (one to three) | output product
    residual += x; norm | gate and up product | activation | down product

Numbers are kept and rounded as transformers' modules do, the residual too. In the last layer only the tokens whose
logits are wanted go on after their K and V are stored. Nothing waits for the GPU, and what is launched depends on
the numbers of tokens and rows alone, so that a CUDA graph can record it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import StepLayout
from engine.kernels.triton.attention import attend_stored
from engine.kernels.triton.layer import add_rms_norm, rotate_and_store, silu_gated
from engine.runner.model.attention import LayerCache, LayerShape
from engine.runner.model.linear_gpu import Product, Weight, fastest
from engine.runner.model.rotary import rotary_tables


class AttendStored(Protocol):
    """See `engine.kernels.triton.attention.attend_stored`."""

    def __call__(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        layout: StepLayout,
        options: AttentionOptions,
        out: torch.Tensor,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: torch.Tensor  # [H]
    epsilon: float

    @staticmethod
    def of(module: Any) -> _Norm:
        return _Norm(module.weight.detach(), module.variance_epsilon)


@dataclass(frozen=True, slots=True)
class _Layer:
    index: int
    attention_norm: _Norm
    qkv: Weight
    q_norm: torch.Tensor | None  # [D]
    k_norm: torch.Tensor | None  # [D]
    head_epsilon: float
    options: AttentionOptions
    output: Weight
    mlp_norm: _Norm
    gate_up: Weight
    down: Weight


@dataclass(frozen=True, slots=True)
class _Products:
    """How each kind of product is done."""

    qkv: Product
    output: Product
    gate_up: Product
    down: Product
    head: Product


class GpuDecoder:
    """Computes what the transformers model it was made of computes. Made by `fuse`; used from one thread."""

    def __init__(
        self,
        model: Any,
        layers: Mapping[int, LayerShape],
        num_positions: int,
        *,
        attend: AttendStored = attend_stored,
        choose: Callable[[Sequence[Weight]], Product] | None = None,
    ) -> None:
        """Takes the model's weights over, layer by layer, so that only one layer's exist twice at a time.

        `choose` says how the products with some weights of one shape are done: by default the faster way on a GPU, and
        torch's elsewhere.
        """
        decoder = model.model
        self._attend = attend
        self._head_size = layers[0].key_size
        self._num_heads = model.config.num_attention_heads
        self._embedding = decoder.embed_tokens.weight.detach()
        self._cos, self._sin = rotary_tables(decoder.rotary_emb, num_positions, self._embedding)
        self._norm = _Norm.of(decoder.norm)
        self._head = _take([model.lm_head])
        self._layers = [_take_layer(layer, layers) for layer in decoder.layers]
        if choose is None:
            choose = fastest if self._embedding.device.type == "cuda" else lambda weights: Product()
        with torch.inference_mode():
            self._products = _Products(
                qkv=choose([layer.qkv for layer in self._layers]),
                output=choose([layer.output for layer in self._layers]),
                gate_up=choose([layer.gate_up for layer in self._layers]),
                down=choose([layer.down for layer in self._layers]),
                head=choose([self._head]),
            )

    @torch.inference_mode()
    def forward(
        self,
        token_ids: torch.Tensor,  # [T] int64
        positions: torch.Tensor,  # [T] int64
        layout: StepLayout,
        caches: Mapping[int, LayerCache],
        wanted: torch.Tensor,  # [n] int64, indices into T
    ) -> torch.Tensor:  # [n, vocab_size], the model's dtype
        """Logits at the wanted tokens of one packed step."""
        num_tokens, num_wanted = len(token_ids), len(wanted)
        residual = F.embedding(token_ids, self._embedding)
        x: torch.Tensor | None = None  # what the residual has yet to be given
        for layer in self._layers:
            q = self._rotated(layer, x, residual, positions, layout, caches[layer.index])
            is_last = layer is self._layers[-1]
            if is_last and not num_wanted:
                break  # its K and V are stored; nothing else is asked for
            attended = self._attended(layer, q, layout, caches[layer.index])
            if is_last and num_wanted < num_tokens:
                residual, attended = residual.index_select(0, wanted), attended.index_select(0, wanted)
            x = self._products.output(layer.output, attended)
            gates = self._products.gate_up(layer.gate_up, _normed(x, residual, layer.mlp_norm))
            activated = residual.new_empty(len(residual), gates.shape[-1] // 2)
            silu_gated(gates, activated)
            x = self._products.down(layer.down, activated)
        if not num_wanted:
            return residual.new_empty(0, len(self._head.weight))
        # As many wanted as there are tokens may still be others than 0, 1, 2, ...: a padded batch repeats some.
        picked = wanted if len(residual) == num_tokens else None
        logits = self._products.head(self._head, _normed(x, residual, self._norm, picked))
        return logits if logits.dim() == 2 else logits.sum(0).to(residual.dtype)

    def _rotated(
        self,
        layer: _Layer,
        x: torch.Tensor | None,
        residual: torch.Tensor,  # [T, H]
        positions: torch.Tensor,
        layout: StepLayout,
        cache: LayerCache,
    ) -> torch.Tensor:
        """Q [T, Hq, D] turned to its positions; the layer's K and V are stored."""
        q = residual.new_empty(len(residual), self._num_heads, self._head_size)
        rotate_and_store(
            self._products.qkv(layer.qkv, _normed(x, residual, layer.attention_norm)),
            positions,
            self._cos,
            self._sin,
            layer.q_norm,
            layer.k_norm,
            layer.head_epsilon,
            layout.slot_mapping,
            cache.k,
            cache.v,
            q,
        )
        return q

    def _attended(
        self, layer: _Layer, q: torch.Tensor, layout: StepLayout, cache: LayerCache
    ) -> torch.Tensor:  # [T, Hq D]
        out = torch.empty_like(q)
        self._attend(q, cache.k, cache.v, layout, layer.options, out)
        return out.view(len(q), -1)


def _normed(
    x: torch.Tensor | None, residual: torch.Tensor, norm: _Norm, picked: torch.Tensor | None = None
) -> torch.Tensor:
    """residual += x, and the norm of it, of the picked tokens."""
    out = torch.empty_like(residual)
    add_rms_norm(x, residual, norm.weight, norm.epsilon, out, picked=picked)
    return out


def _take_layer(layer: Any, shapes: Mapping[int, LayerShape]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    attention_norm = _Norm.of(layer.input_layernorm)
    has_head_norms = hasattr(attention, "q_norm")
    return _Layer(
        index=attention.layer_idx,
        attention_norm=attention_norm,
        qkv=_take([attention.q_proj, attention.k_proj, attention.v_proj]),
        q_norm=attention.q_norm.weight.detach() if has_head_norms else None,
        k_norm=attention.k_norm.weight.detach() if has_head_norms else None,
        head_epsilon=attention.q_norm.variance_epsilon if has_head_norms else attention_norm.epsilon,
        options=AttentionOptions(attention.scaling, shapes[attention.layer_idx].window),
        output=_take([attention.o_proj]),
        mlp_norm=_Norm.of(layer.post_attention_layernorm),
        gate_up=_take([mlp.gate_proj, mlp.up_proj]),
        down=_take([mlp.down_proj]),
    )


def _take(linears: Sequence[nn.Linear]) -> Weight:
    """The layers' weights as one; the layers are left without."""
    weights = [linear.weight.detach() for linear in linears]
    biases = [linear.bias for linear in linears]
    bias = None if biases[0] is None else torch.cat([part.detach() for part in biases])
    taken = Weight(weights[0].contiguous() if len(weights) == 1 else torch.cat(weights), bias)
    for linear in linears:
        linear.weight = nn.Parameter(weights[0].new_empty(0), requires_grad=False)
    return taken
