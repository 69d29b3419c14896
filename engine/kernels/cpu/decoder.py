"""A decoder layer on a CPU as two compiled calls, out of the kernels of its parts.

Between kernels Python is slow: a layer's weights have driven its data out of the caches, and other threads of the
process take turns with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.extending import overload

from engine.kernels.cpu import linear as cpu_linear
from engine.kernels.cpu import linear_bf16 as cpu_narrow_linear
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
    rotations: Any,  # cos and sin, each [positions there are, D / 2] float32
    positions: Any,  # [T] int64
    slots: Any,  # [T] int64
    k_cache: Any,  # [num_slots, Hkv, D] float32, or bfloat16 as uint16; written at `slots`
    v_cache: Any,
    multiplier: Any,  # `engine.kernels.cpu.attention.chunk_multiplier`
    work: Any,  # `engine.kernels.cpu.attention.attention_work`
    num_threads: Any,
    normed: Any,  # [T, H] what products take; overwritten
    qkv: Any,  # [T, >= (Hq + 2 Hkv) D] float32, overwritten
    q: Any,  # [T, Hq, D] float32, overwritten
    out: Any,  # [T, Hq, D] what products take; written
) -> None:
    """The layer's attention, short of its output product; K and V of the step are stored."""
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
    attend(q, k_cache, v_cache, multiplier, work, scale, window, np.float32(0.0), no_sinks, out)


@njit(cache=True, nogil=True)
def feed_forward(
    attended: Any,  # [T, Hq D] what products take
    residual: Any,  # [T, >= H] float32; both parts of the layer are added
    output_weights: Any,  # as `product` takes them
    norm: Any,  # [H] float32
    epsilon: Any,
    gate_up_weights: Any,
    down_weights: Any,
    num_threads: Any,
    normed: Any,  # [T, H] what products take; overwritten
    gated: Any,  # [T, F] what products take; overwritten
) -> None:
    """The output product of the layer's attention, and all that follows."""
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
    normed: Any,  # [n, H] what products take; overwritten
    out: Any,  # [n, >= V] float32, written
) -> None:
    """Logits."""
    rms_norm(residual, norm, epsilon, num_threads, normed)
    product(normed, weights, STORE, num_threads, out)


def product(x: Any, weights: Any, mode: Any, num_threads: Any, out: Any) -> None:
    """`linear` of `cpu_narrow_linear` where `weights` are (panels, bias, multiplier), of `cpu_linear` where they are
    (panels, bias); compiled for either by `_product_for`."""
    raise TypeError("runs compiled only")


@overload(product)
def _product_for(x, weights, mode, num_threads, out):  # type: ignore[no-untyped-def]  # numba compares the signatures
    if len(weights) == 3:

        def narrow(x, weights, mode, num_threads, out):  # type: ignore[no-untyped-def]
            cpu_narrow_linear.linear(x, weights[0], weights[2], weights[1], mode, num_threads, out)

        return narrow

    def wide(x, weights, mode, num_threads, out):  # type: ignore[no-untyped-def]
        cpu_linear.linear(x, weights[0], weights[1], mode, num_threads, out)

    return wide
