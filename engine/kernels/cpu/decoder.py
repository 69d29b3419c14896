"""A decoder layer as two compiled calls, attention and feed-forward, and the language model head as a third.

Fewer calls keep Python out of the way. It is slow between kernels: a layer's weights have evicted its data from the
caches, and it competes with the process's other threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from engine.kernels.cpu import linear, linear_bf16
from engine.kernels.cpu.layer import rms_norm, rotate_and_store
from engine.kernels.cpu.linear import ADD, GATED, STORE
from engine.kernels.cpu.step_attention import attend


@njit(cache=True, nogil=True)
def attention(
    residual: Any,  # [T, >= H] float32
    norm: Any,  # [H] float32
    epsilon: Any,
    qkv_weights: Any,  # as `product` takes them
    q_norm: Any,  # [D] float32, or empty
    k_norm: Any,
    scale: Any,
    window: Any,  # 0: none
    rotations: Any,  # cos and sin, each [max positions, D / 2] float32
    positions: Any,  # [T] int64
    slots: Any,  # [T] int64; or empty: K and V are stored already, and the weights are only those of Q
    k_cache: Any,  # [num_slots, Hkv, D] float32, or bfloat16 as uint16; written at `slots`
    v_cache: Any,
    code: Any,  # `engine.kernels.cpu.attention.attention_code`
    work: Any,  # `engine.kernels.cpu.attention.attention_work`
    num_threads: Any,
    normed: Any,  # [T, H] of the dtype that products take; overwritten
    qkv: Any,  # [T, >= (Hq + 2 Hkv) D] float32, overwritten
    q: Any,  # [T, Hq, D] float32, overwritten
    out: Any,  # [T, Hq, D] of the dtype that products take; written
) -> None:
    """Computes the layer's attention up to its output projection, and stores the step's K and V."""
    rms_norm(residual, norm, epsilon, num_threads, normed)
    product(normed, qkv_weights, STORE, num_threads, qkv)
    rotate_and_store(
        qkv,
        positions,
        rotations[0],
        rotations[1],
        q_norm,
        k_norm,
        epsilon,
        slots,
        k_cache,
        v_cache,
        num_threads,
        q,
    )
    no_sinks = np.empty(0, dtype=np.float32)
    attend(q, k_cache, v_cache, code, work, scale, window, np.float32(0.0), no_sinks, out)


@njit(cache=True, nogil=True)
def store_kv(
    residual: Any,  # [T, >= H] float32
    norm: Any,  # [H] float32
    epsilon: Any,
    kv_weights: Any,  # as `product` takes them
    k_norm: Any,  # [D] float32, or empty
    rotations: Any,  # as `attention` takes them
    positions: Any,  # [T] int64
    slots: Any,  # [T] int64
    k_cache: Any,  # [num_slots, Hkv, D] float32, or bfloat16 as uint16; written at `slots`
    v_cache: Any,
    num_threads: Any,
    normed: Any,  # [T, H] of the dtype that products take; overwritten
    kv: Any,  # [T, >= 2 Hkv D] float32, overwritten
) -> None:
    """Stores the layer's K and V of all tokens, before `attention` computes some of them further."""
    rms_norm(residual, norm, epsilon, num_threads, normed)
    product(normed, kv_weights, STORE, num_threads, kv)
    no_q = np.empty((len(kv), 0, k_cache.shape[2]), dtype=np.float32)
    rotate_and_store(
        kv,
        positions,
        rotations[0],
        rotations[1],
        k_norm,
        k_norm,
        epsilon,
        slots,
        k_cache,
        v_cache,
        num_threads,
        no_q,
    )


@njit(cache=True, nogil=True)
def feed_forward(
    attended: Any,  # [T, Hq D] of the dtype that products take
    residual: Any,  # [T, >= H] float32; attention and feed-forward are added to it
    output_weights: Any,  # as `product` takes them
    norm: Any,  # [H] float32
    epsilon: Any,
    gate_up_weights: Any,
    down_weights: Any,
    num_threads: Any,
    normed: Any,  # [T, H] of the dtype that products take; overwritten
    gated: Any,  # [T, F] of the dtype that products take; overwritten
) -> None:
    """Computes the output projection of the layer's attention and everything that follows it."""
    product(attended, output_weights, ADD, num_threads, residual)
    rms_norm(residual, norm, epsilon, num_threads, normed)
    product(normed, gate_up_weights, GATED, num_threads, gated)
    product(gated, down_weights, ADD, num_threads, residual)


@njit(cache=True, nogil=True)
def head(
    residual: Any,  # [n, >= H] float32
    norm: Any,  # [H] float32
    epsilon: Any,
    weights: Any,  # as `product` takes them
    num_threads: Any,
    normed: Any,  # [n, H] of the dtype that products take; overwritten
    out: Any,  # [n, >= V] float32, written
) -> None:
    """Computes the final norm and the logits."""
    rms_norm(residual, norm, epsilon, num_threads, normed)
    product(normed, weights, STORE, num_threads, out)


def product(x: Any, weights: Any, mode: Any, num_threads: Any, out: Any) -> None:
    """A linear layer with weights (code, panels, bias, multiplier). The multiplier is None for `linear.linear`.

    In compiled functions, `_product_for` makes the choice, so that only one of the two is compiled.
    """
    code, panels, bias, multiplier = weights
    if multiplier is None:
        linear.linear(code, x, panels, bias, mode, num_threads, out)
    else:
        linear_bf16.linear(code, x, panels, multiplier, bias, mode, num_threads, out)


@overload(product, inline="always")
def _product_for(x, weights, mode, num_threads, out):  # type: ignore[no-untyped-def]  # numba compares the signatures
    # `mode` is not passed as the constant that it is, for which numba would compile a kernel of its own.
    if isinstance(weights[3], types.NoneType):
        return lambda x, weights, mode, num_threads, out: linear.linear(
            weights[0], x, weights[1], weights[2], np.int64(mode), num_threads, out
        )
    return lambda x, weights, mode, num_threads, out: linear_bf16.linear(
        weights[0], x, weights[1], weights[3], weights[2], np.int64(mode), num_threads, out
    )
