"""Llama-like models on a CPU: two calls of compiled kernels per layer.

One call is the layer's attention, the other everything after it (`engine.kernels.cpu.decoder`). No module is called and
no torch operation runs. The residual is float32 throughout. In the last layer, a call of its own computes K and V of
all tokens. Only the tokens whose logits are wanted are computed further, as if the step had no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from engine.kernels.cpu import decoder as kernels
from engine.kernels.cpu import multiply_bf16
from engine.kernels.cpu.attention import (
    attention_code,
    attention_work,
    attention_work_of_last,
    numpy_view,
)
from engine.kernels.cpu.layer import embed, rms_norm
from engine.kernels.cpu.linear import STORE, padded
from engine.kernels.cpu.threads import use_threads
from engine.kernels.layout import StepLayout
from engine.runner.kv.memory import LayerCache, LayerShape
from engine.runner.model.linear_cpu import Packed, PackedWeights, Workspace
from engine.runner.model.rotary import rotary_tables

Array = npt.NDArray[Any]

_NO_NORM = np.empty(0, dtype=np.float32)
_NO_SLOTS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Layer:
    """The arguments of a layer's two kernel calls that are the same in every step."""

    index: int
    # norm, epsilon, QKV, Q norm, K norm, scale, window
    attention: tuple[Array, float, Packed, Array, Array, np.float32, int]
    feed_forward: tuple[Packed, Array, float, Packed, Packed]  # output, norm, epsilon, gate and up, down


class CpuDecoder:
    """Computes the same logits as the transformers model whose weights it takes. Used from one thread."""

    def __init__(self, model: Any, layers: Mapping[int, LayerShape], num_positions: int) -> None:
        """Takes over the model's weights layer by layer, so that only one layer's weights exist twice at a time."""
        decoder, config = model.model, model.config
        head_size = layers[0].key_size
        self._workspace = Workspace()
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        fits = all(linear.in_features % multiply_bf16.STEP == 0 for linear in linears)
        self._is_bf16 = model.dtype is torch.bfloat16 and fits and multiply_bf16.multiplier() is not None
        self._embedding = numpy_view(decoder.embed_tokens.weight.detach())
        self._vocab_size = model.lm_head.weight.shape[0]
        self._num_kv_heads, self._head_size = config.num_key_value_heads, head_size
        self._hidden_size = self._embedding.shape[1]
        self._width = padded(self._hidden_size)
        self._query_width = config.num_attention_heads * head_size
        cos, sin = rotary_tables(decoder.rotary_emb, num_positions, torch.empty(0))
        self._rotations = (cos.numpy(), sin.numpy())
        self._head = self._take([model.lm_head])
        self._final_norm = _norm(decoder.norm)
        self._layers = [self._take_layer(layer, layers) for layer in decoder.layers]
        # Q, and K and V, of the last layer. None if they share a panel.
        self._last_parts = _split(self._layers[-1].attention[2], self._query_width, self._qkv_width)
        self._caches: Mapping[int, LayerCache] = {}
        self._planes: list[tuple[Any, ...]] = []  # by layer: K and V of `_caches`
        self._attention_code: Any = None  # for the dtype of `_caches`

    def forward(
        self,
        token_ids: torch.Tensor,  # [T] int64
        positions: torch.Tensor,  # [T] int64
        layout: StepLayout,
        caches: Mapping[int, LayerCache],
        wanted: torch.Tensor,  # [n] int64, indices into T
    ) -> torch.Tensor:  # [n, vocab_size], in memory that the next call may overwrite
        """Returns the logits at the wanted tokens of one packed step."""
        residual = self._residual(token_ids, positions, layout, caches, wanted)
        if not len(wanted):
            return torch.empty(0, self._vocab_size)
        normed = self._take_activations("normed", len(residual), self._hidden_size)
        logits = self._workspace.take("logits", len(residual), self._head.width)
        num_threads = use_threads(torch.get_num_threads())
        kernels.head(residual, *self._final_norm, self._head.packed, num_threads, normed, logits)
        return torch.from_numpy(logits)[:, : self._vocab_size]

    def hidden(
        self,
        token_ids: torch.Tensor,  # [T] int64
        positions: torch.Tensor,  # [T] int64
        layout: StepLayout,
        caches: Mapping[int, LayerCache],
        wanted: torch.Tensor,  # [n] int64, ascending indices into T
    ) -> torch.Tensor:  # [n, H] float32
        """Returns the hidden states after the final norm at the wanted tokens of one packed step."""
        residual = self._residual(token_ids, positions, layout, caches, wanted)
        if not len(wanted):
            return torch.empty(0, self._hidden_size)
        normed = self._take_activations("normed", len(residual), self._hidden_size)
        rms_norm(residual, *self._final_norm, use_threads(torch.get_num_threads()), normed)
        found = torch.from_numpy(normed)
        return found.view(torch.bfloat16).float() if self._is_bf16 else found.clone()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits [n, V] of hidden states [n, H] that `hidden` returned, in memory that the next call may
        overwrite."""
        normed = self._take_activations("normed", len(hidden), self._hidden_size)
        given = hidden.bfloat16().view(torch.uint16) if self._is_bf16 else hidden
        normed[:] = given.numpy()
        logits = self._workspace.take("logits", len(hidden), self._head.width)
        kernels.product(normed, self._head.packed, STORE, use_threads(torch.get_num_threads()), logits)
        return torch.from_numpy(logits)[:, : self._vocab_size]

    def _residual(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        layout: StepLayout,
        caches: Mapping[int, LayerCache],
        wanted: torch.Tensor,
    ) -> Array:  # [n, >= H] float32
        """Computes all layers, and returns the residual at the wanted tokens."""
        num_tokens, size = len(token_ids), self._head_size
        num_threads = use_threads(torch.get_num_threads())
        residual = self._workspace.take("residual", num_tokens, self._width)
        normed = self._take_activations("normed", num_tokens, self._hidden_size)
        qkv = self._workspace.take("qkv", num_tokens, self._qkv_width)
        q = self._workspace.take("q", num_tokens, self._query_width).reshape(num_tokens, -1, size)
        attended = self._take_activations("attended", num_tokens, self._query_width)
        gated = self._take_activations("gated", num_tokens, self._gated_width)
        if caches is not self._caches:
            self._caches = caches
            self._planes = [
                (numpy_view(caches[layer.index].k), numpy_view(caches[layer.index].v))
                for layer in self._layers
            ]
            self._attention_code = attention_code(self._planes[0][0].dtype, size, size, attended.dtype)
        work = attention_work(layout, self._num_kv_heads, num_threads)
        last_work = None
        if len(wanted) < num_tokens and self._last_parts is not None:
            last_work = attention_work_of_last(layout, wanted.numpy(), self._num_kv_heads, num_threads)
        step = (positions.numpy(), layout.slot_mapping.numpy())
        buffers = (normed, qkv, q, attended.reshape(num_tokens, -1, size))
        embed(self._embedding, token_ids.numpy(), residual)
        for layer, (k, v) in zip(self._layers, self._planes, strict=True):
            is_last = layer is self._layers[-1]
            if is_last and last_work is not None:
                attended = attended[: len(wanted)]
                residual = self._attend_from(
                    wanted.numpy(), residual, step, k, v, last_work, num_threads, normed, attended
                )
            else:
                kernels.attention(
                    residual, *layer.attention, self._rotations, *step, k, v, self._attention_code, work, num_threads,
                    *buffers,
                )  # fmt: skip
                if is_last and len(wanted) < num_tokens:
                    residual = self._pick("picked residual", residual, wanted.numpy())
                    attended = self._pick("picked attended", attended, wanted.numpy())
            if len(residual):
                kernels.feed_forward(
                    attended, residual, *layer.feed_forward, num_threads, normed[: len(residual)],
                    gated[: len(residual)],
                )  # fmt: skip
        return residual

    def _attend_from(
        self,
        wanted: Array,  # [n] indices into T
        residual: Array,  # [T, >= H]
        step: tuple[Array, Array],  # positions and slots [T]
        k: Array,
        v: Array,
        work: tuple[Any, ...],  # of the wanted tokens
        num_threads: int,
        normed: Array,
        attended: Array,  # [n, Hq D], written
    ) -> Array:  # [n, >= H]
        """Computes the last layer's attention from the wanted tokens to all. Returns the residual of the wanted."""
        assert self._last_parts is not None
        q_weights, kv_weights = self._last_parts
        norm, epsilon, _, q_norm, k_norm, scale, window = self._layers[-1].attention
        num_tokens, size = len(residual), self._head_size
        kv = self._workspace.take("kv", num_tokens, self._qkv_width - self._query_width)
        kernels.store_kv(
            residual, norm, epsilon, kv_weights, k_norm, self._rotations, *step, k, v, num_threads, normed, kv
        )
        picked = self._pick("picked residual", residual, wanted)
        if len(wanted):
            given = self._workspace.take("picked qkv", len(wanted), self._query_width)
            q = self._workspace.take("picked q", len(wanted), self._query_width)
            kernels.attention(
                picked, norm, epsilon, q_weights, q_norm, k_norm, scale, window, self._rotations, step[0][wanted],
                _NO_SLOTS, k, v, self._attention_code, work, num_threads, normed[: len(wanted)], given,
                q.reshape(len(wanted), -1, size), attended.reshape(len(wanted), -1, size),
            )  # fmt: skip
        return picked

    def _take_activations(self, name: str, num_rows: int, width: int) -> Array:
        """Returns a buffer for the input of a linear layer."""
        return self._workspace.take(name, num_rows, width, np.uint16 if self._is_bf16 else np.float32)

    def _pick(self, name: str, rows: Array, picked: Array) -> Array:
        out = self._workspace.take(name, len(picked), rows.shape[1], rows.dtype)
        np.take(rows, picked, axis=0, out=out)
        return out

    def _take_layer(self, layer: Any, shapes: Mapping[int, LayerShape]) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        head_norms = (_NO_NORM, _NO_NORM)
        if hasattr(attention, "q_norm"):
            head_norms = (_norm(attention.q_norm)[0], _norm(attention.k_norm)[0])
        qkv = self._take([attention.q_proj, attention.k_proj, attention.v_proj])
        output = self._take([attention.o_proj])
        gate_up = self._take([mlp.gate_proj, mlp.up_proj], is_gate=True)
        down = self._take([mlp.down_proj])
        self._qkv_width, self._gated_width = qkv.width, gate_up.width  # the same in all layers
        return _Layer(
            attention.layer_idx,
            (
                *_norm(layer.input_layernorm),
                qkv.packed,
                *head_norms,
                np.float32(attention.scaling),
                shapes[attention.layer_idx].window or 0,
            ),
            (output.packed, *_norm(layer.post_attention_layernorm), gate_up.packed, down.packed),
        )

    def _take(self, linears: Sequence[nn.Linear], *, is_gate: bool = False) -> PackedWeights:
        weights: list[torch.Tensor] = [linear.weight for linear in linears]
        biases: list[torch.Tensor] = [linear.bias for linear in linears]
        bias = None if biases[0] is None else torch.cat(biases)
        packed = PackedWeights(weights, bias, is_bf16=self._is_bf16, is_gate=is_gate)
        for linear in linears:
            linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        return packed


def _norm(module: Any) -> tuple[Array, float]:
    """The weight of a norm in float32, and its epsilon."""
    return module.weight.detach().float().numpy(), module.variance_epsilon


def _split(packed: Packed, num_columns: int, width: int) -> tuple[Packed, Packed] | None:
    """The first `num_columns` of `width` columns of packed weights, and the others. None if they share a panel."""
    code, panels, bias, multiplier = packed
    first, rest = divmod(num_columns, width // len(panels))
    if rest:
        return None
    return (
        (code, panels[:first], bias[:num_columns], multiplier),
        (code, panels[first:], bias[num_columns:], multiplier),
    )
