"""Compiled attention of a whole step: first the rows that compute one token, then those that compute several."""

from __future__ import annotations

from typing import Any

from numba import njit

from engine.kernels.cpu import prefill_attention, prefill_attention_bf16
from engine.kernels.cpu.decode_attention import attend_singles


@njit(cache=True, nogil=True)
def attend(
    q: Any,  # [T, Hq, D] float32
    k_cache: Any,  # [num_slots, Hkv, D] float32, or bfloat16 as uint16
    v_cache: Any,  # [num_slots, Hkv, Dv]
    multiplier: Any,  # `engine.kernels.cpu.attention.prefill_multiplier`
    work: Any,  # `engine.kernels.cpu.attention.attention_work`
    scale: Any,
    window: Any,  # 0: none
    softcap: Any,  # 0: none
    sinks: Any,  # [Hq] float32, or empty
    out: Any,  # [T, Hq, Dv] float32, or bfloat16 as uint16; written
) -> None:
    """`engine.kernels.reference.attention` for a step whose K and V are already stored."""
    table, single, order, longer, heads_per_unit, parts = work
    if single.shape[1] > 0:
        attend_singles(
            q, k_cache, v_cache, table, single[3], single[0], single[4], order, scale, window, softcap, sinks,
            heads_per_unit, out,
        )  # fmt: skip
    if longer.shape[1] > 0:
        if multiplier is None:  # decided when numba compiles: only the branch for the argument's type remains
            prefill_attention.attend_chunks(
                q, k_cache, v_cache, table, longer, parts, scale, window, softcap, sinks, out
            )
        else:
            prefill_attention_bf16.attend_chunks(
                q, k_cache, v_cache, multiplier, table, longer, parts, scale, window, softcap, sinks, out
            )
