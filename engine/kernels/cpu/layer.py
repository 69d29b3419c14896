"""What a decoder layer computes between its matrix products and its attention, compiled by numba.

Each function is one pass over memory. A step of few tokens runs it on one thread: waking up more threads would take
longer than they save.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from engine.kernels.cpu.scalars import FAST, round_to, to_float32

_MIN_TOKENS_PER_THREAD = 64  # the norm of 64 tokens takes about 20 us


@njit(cache=True, nogil=True)
def embed(
    table: Any,  # [V, H] float32, or bfloat16 as uint16
    token_ids: Any,  # [T] int64
    out: Any,  # [T, >= H] float32, written
) -> None:
    """The embedding of each token."""
    for t in range(len(token_ids)):
        for c in range(table.shape[1]):
            out[t, c] = to_float32(table[token_ids[t], c])


@njit(cache=True, nogil=True)
def _num_parts(num_tokens: Any, num_threads: Any) -> Any:
    """The number of threads for which there is enough work; with 1, none are woken up."""
    return max(1, min(num_tokens // _MIN_TOKENS_PER_THREAD, num_threads))


@njit(cache=True, nogil=True)
def rms_norm(x: Any, weight: Any, epsilon: Any, num_threads: Any, out: Any) -> None:
    """`engine.kernels.reference.layer.rms_norm`, with the shapes of `_rms_norm`."""
    num_parts = _num_parts(len(out), num_threads)
    if num_parts > 1:
        _rms_norm_parts(num_parts, x, weight, epsilon, out)
    else:
        _rms_norm(x, weight, epsilon, out)


@njit(parallel=True, cache=True, nogil=True)
def _rms_norm_parts(num_parts: Any, x: Any, weight: Any, epsilon: Any, out: Any) -> None:
    for part in prange(num_parts):
        first, end = len(out) * part // num_parts, len(out) * (part + 1) // num_parts
        _rms_norm(x[first:end], weight, epsilon, out[first:end])


@njit(cache=True, nogil=True, fastmath=FAST)
def _rms_norm(
    x: Any,  # [T, >= H] float32
    weight: Any,  # [H] float32
    epsilon: Any,
    out: Any,  # [T, H] float32, or bfloat16 as uint16; written
) -> None:
    size = len(weight)
    for t in range(len(out)):
        total = np.float32(0.0)
        for c in range(size):
            total += x[t, c] * x[t, c]
        inverse = np.float32(1.0 / np.sqrt(total / size + epsilon))
        for c in range(size):
            out[t, c] = round_to(x[t, c] * inverse * weight[c], out[0, 0])


@njit(cache=True, nogil=True)
def rotate_and_store(
    qkv: Any, positions: Any, cos: Any, sin: Any, q_norm: Any, k_norm: Any, epsilon: Any, slots: Any, k_cache: Any,
    v_cache: Any, num_threads: Any, q: Any,
) -> None:  # fmt: skip
    """`engine.kernels.reference.layer.rotate_and_store`, with the shapes of `_rotate_and_store`."""
    num_parts = _num_parts(len(q), num_threads)
    if num_parts > 1:
        _rotate_and_store_parts(
            num_parts, qkv, positions, cos, sin, q_norm, k_norm, epsilon, slots, k_cache, v_cache, q
        )
    else:
        _rotate_and_store(qkv, positions, cos, sin, q_norm, k_norm, epsilon, slots, k_cache, v_cache, q)


@njit(parallel=True, cache=True, nogil=True)
def _rotate_and_store_parts(
    num_parts: Any, qkv: Any, positions: Any, cos: Any, sin: Any, q_norm: Any, k_norm: Any, epsilon: Any, slots: Any,
    k_cache: Any, v_cache: Any, q: Any,
) -> None:  # fmt: skip
    for part in prange(num_parts):
        first, end = len(q) * part // num_parts, len(q) * (part + 1) // num_parts
        _rotate_and_store(
            qkv[first:end], positions[first:end], cos, sin, q_norm, k_norm, epsilon, slots[first:end], k_cache,
            v_cache, q[first:end],
        )  # fmt: skip


@njit(cache=True, nogil=True, fastmath=FAST)
def _rotate_and_store(
    qkv: Any,  # [T, >= (Hq + 2 Hkv) D] float32: heads of Q, then of K, then of V
    positions: Any,  # [T] int64
    cos: Any,  # [max positions, D / 2] float32
    sin: Any,
    q_norm: Any,  # [D] float32, or empty: weight of an RMSNorm of each head before its rotation
    k_norm: Any,
    epsilon: Any,
    slots: Any,  # [T] int64; or empty: `qkv` has only heads of Q
    k_cache: Any,  # [num_slots, Hkv, D] float32, or bfloat16 as uint16; written at `slots`
    v_cache: Any,  # [num_slots, Hkv, D]
    q: Any,  # [T, Hq, D] float32, written; or [T, 0, D]: `qkv` has only heads of K and V
) -> None:
    num_tokens, num_heads, size = q.shape
    num_kv_heads = k_cache.shape[1] if len(slots) > 0 else 0
    half = size // 2
    line = np.empty(size, dtype=np.float32)
    for t in range(num_tokens):
        position = positions[t]
        slot = slots[t] if num_kv_heads > 0 else 0
        for head in range(num_heads + num_kv_heads):
            for d in range(size):
                line[d] = qkv[t, head * size + d]
            norm = q_norm if head < num_heads else k_norm
            if len(norm) > 0:
                total = np.float32(0.0)
                for d in range(size):
                    total += line[d] * line[d]
                inverse = np.float32(1.0 / np.sqrt(total / size + epsilon))
                for d in range(size):
                    line[d] = line[d] * inverse * norm[d]
            if head < num_heads:
                for d in range(half):
                    q[t, head, d] = line[d] * cos[position, d] - line[half + d] * sin[position, d]
                    q[t, head, half + d] = line[half + d] * cos[position, d] + line[d] * sin[position, d]
            else:
                kv_head = head - num_heads
                for d in range(half):
                    low = line[d] * cos[position, d] - line[half + d] * sin[position, d]
                    high = line[half + d] * cos[position, d] + line[d] * sin[position, d]
                    k_cache[slot, kv_head, d] = round_to(low, k_cache[0, 0, 0])
                    k_cache[slot, kv_head, half + d] = round_to(high, k_cache[0, 0, 0])
        first = (num_heads + num_kv_heads) * size
        for kv_head in range(num_kv_heads):
            for d in range(size):
                value = qkv[t, first + kv_head * size + d]
                v_cache[slot, kv_head, d] = round_to(value, v_cache[0, 0, 0])
