"""Llama-like models on a GPU: linear layers by cuBLAS or our own kernel, everything between them by Triton kernels.

A layer is nine to twelve launches:

    residual += x; norm | QKV linear | head norms, rotation, KV store | attention (one to four) | output linear
    residual += x; norm | gate and up linear | activation | down linear

Values, the residual included, are stored and rounded as transformers' modules do. In the last layer, once the K and V
of all tokens are stored, only the tokens whose logits are wanted are computed further. Nothing waits for the GPU, and
the launches depend on nothing but the numbers of tokens and rows, so that a CUDA graph can capture them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import StepLayout
from engine.kernels.triton.attention import attend_stored
from engine.kernels.triton.layer import add_rms_norm, rotate_and_store, silu_gated
from engine.runner.kv.memory import LayerCache, LayerShape
from engine.runner.model.linear_fp8 import Fp8Linear
from engine.runner.model.linear_gpu import LinearWeights, TunedLinear, tune_linear
from engine.runner.model.rotary import rotary_tables


class AttendStored(Protocol):
    """The signature of `engine.kernels.triton.attention.attend_stored`."""

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
    qkv: LinearWeights
    q_norm: torch.Tensor | None  # [D]
    k_norm: torch.Tensor | None  # [D]
    head_epsilon: float
    options: AttentionOptions
    output: LinearWeights
    mlp_norm: _Norm
    gate_up: LinearWeights
    down: LinearWeights


@dataclass(frozen=True, slots=True)
class _Linears:
    """The linear operation of each kind of layer."""

    qkv: TunedLinear
    output: TunedLinear
    gate_up: TunedLinear
    down: TunedLinear
    head: TunedLinear


class GpuDecoder:
    """Computes the same logits as the transformers model whose weights it takes. Used from one thread."""

    def __init__(
        self,
        model: Any,
        layers: Mapping[int, LayerShape],
        num_positions: int,
        *,
        attend: AttendStored = attend_stored,
        tune: Callable[[Sequence[LinearWeights]], TunedLinear] | None = None,
    ) -> None:
        """Takes over the model's weights layer by layer, so that only one layer's weights exist twice at a time.

        `tune` chooses the linear operation for layers whose weights have one shape. The default is `tune_linear` on a
        GPU, and torch's product elsewhere.
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
        if tune is None:
            tune = tune_linear if self._embedding.device.type == "cuda" else lambda _: TunedLinear()
        with torch.inference_mode():
            self._linears = _Linears(
                qkv=tune([layer.qkv for layer in self._layers]),
                output=tune([layer.output for layer in self._layers]),
                gate_up=tune([layer.gate_up for layer in self._layers]),
                down=tune([layer.down for layer in self._layers]),
                head=tune([self._head]),
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
        """Returns the logits at the wanted tokens of one packed step."""
        return self.logits(self.hidden(token_ids, positions, layout, caches, wanted))

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits [n, V] of hidden states [n, H] that `hidden` returned."""
        if not len(hidden):
            return hidden.new_empty(0, len(self._head.weight))
        logits = self._linears.head(self._head, hidden)
        return logits if logits.dim() == 2 else logits.sum(0).to(hidden.dtype)

    @torch.inference_mode()
    def hidden(
        self,
        token_ids: torch.Tensor,  # [T] int64
        positions: torch.Tensor,  # [T] int64
        layout: StepLayout,
        caches: Mapping[int, LayerCache],
        wanted: torch.Tensor,  # [n] int64, indices into T
    ) -> torch.Tensor:  # [n, H], the model's dtype
        """Returns the hidden states after the final norm at the wanted tokens of one packed step."""
        num_tokens, num_wanted = len(token_ids), len(wanted)
        residual = F.embedding(token_ids, self._embedding)
        x: torch.Tensor | None = None  # to be added to the residual
        for layer in self._layers:
            q = self._rotated(layer, x, residual, positions, layout, caches[layer.index])
            is_last = layer is self._layers[-1]
            if is_last and not num_wanted:
                break  # its K and V are stored, and no logits are wanted
            attended = self._attended(layer, q, layout, caches[layer.index])
            if is_last and num_wanted < num_tokens:
                residual, attended = residual.index_select(0, wanted), attended.index_select(0, wanted)
            x = self._linears.output(layer.output, attended)
            gates = self._linears.gate_up(layer.gate_up, _normed(x, residual, layer.mlp_norm))
            activated = residual.new_empty(len(residual), gates.shape[-1] // 2)
            silu_gated(gates, activated)
            x = self._linears.down(layer.down, activated)
        if not num_wanted:
            return residual.new_empty(0, residual.shape[1])
        # Even if as many are wanted as there are tokens, they need not be 0, 1, 2, ...: a padded batch repeats some.
        picked = wanted if len(residual) == num_tokens else None
        return _normed(x, residual, self._norm, picked)

    def layer_products(self, num_tokens: int) -> Callable[[], None]:
        """Returns what computes the products of the first layer for so many tokens, and nothing else of it."""
        layer, linears = self._layers[0], self._linears
        kinds = (
            (linears.qkv, layer.qkv),
            (linears.output, layer.output),
            (linears.gate_up, layer.gate_up),
            (linears.down, layer.down),
        )
        new = partial(torch.randn, dtype=self._embedding.dtype, device=self._embedding.device)
        inputs = [new(num_tokens, weights.weight.shape[1]) for _, weights in kinds]

        def compute() -> None:
            for (linear, weights), x in zip(kinds, inputs, strict=True):
                linear(weights, x)

        return compute

    def _rotated(
        self,
        layer: _Layer,
        x: torch.Tensor | None,
        residual: torch.Tensor,  # [T, H]
        positions: torch.Tensor,
        layout: StepLayout,
        cache: LayerCache,
    ) -> torch.Tensor:
        """Stores the layer's K and V, and returns Q [T, Hq, D], rotated by its positions."""
        q = residual.new_empty(len(residual), self._num_heads, self._head_size)
        rotate_and_store(
            self._linears.qkv(layer.qkv, _normed(x, residual, layer.attention_norm)),
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
    """Adds x to the residual in place, and returns the norm of the sum, only of the picked tokens if there are any."""
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


def _take(linears: Sequence[nn.Linear]) -> LinearWeights:
    """Stacks the weights of the layers, which lose theirs, and their scales if they are in fp8."""
    weights = [linear.weight.detach() for linear in linears]
    biases = [linear.bias for linear in linears]
    bias = None if biases[0] is None else torch.cat([part.detach() for part in biases])
    scales = [linear.scales for linear in linears if isinstance(linear, Fp8Linear)]
    if 0 < len(scales) < len(linears):
        raise ValueError("linear layers with one input are quantized only in part")
    taken = LinearWeights(
        weights[0].contiguous() if len(weights) == 1 else torch.cat(weights),
        bias,
        torch.cat(scales) if scales else None,
    )
    for linear in linears:
        linear.weight = nn.Parameter(weights[0].new_empty(0), requires_grad=False)
    return taken
