"""Attention of a step's rows on a CPU, compiled: those with one new token, then those with several."""

from __future__ import annotations

from typing import Any

from numba import njit, types
from numba.extending import overload

from engine.kernels.cpu import prefill_attention as cpu_chunk
from engine.kernels.cpu import prefill_attention_bf16 as cpu_narrow_chunk
from engine.kernels.cpu.decode_attention import attend_single


@njit(cache=True, nogil=True)
def attend(
    q: Any,  # [T, Hq, D] float32
    k_cache: Any,  # [num_slots, Hkv, D] float32, or bfloat16 as uint16
    v_cache: Any,  # [num_slots, Hkv, Dv]
    multiplier: Any,  # `engine.kernels.cpu.attention.chunk_multiplier`
    work: Any,  # `engine.kernels.cpu.attention.attention_work`
    scale: Any,
    window: Any,  # 0: none
    softcap: Any,  # 0: none
    sinks: Any,  # [Hq] float32, or empty
    out: Any,  # [T, Hq, Dv] float32, or bfloat16 as uint16; written
) -> None:
    """`engine.kernels.reference.attention` of rows whose K and V are stored already."""
    table, single, order, longer, heads_per_unit, parts = work
    if single.shape[1] > 0:
        attend_single(
            q, k_cache, v_cache, table, single[3], single[0], single[4], order, scale, window, softcap, sinks,
            heads_per_unit, out,
        )  # fmt: skip
    if longer.shape[1] > 0:
        _attend_chunks(
            q, k_cache, v_cache, multiplier, table, longer, parts, scale, window, softcap, sinks, out
        )


def _attend_chunks(
    q: Any, k_cache: Any, v_cache: Any, multiplier: Any, table: Any, chunks: Any, parts: Any, scale: Any, window: Any,
    softcap: Any, sinks: Any, out: Any,
) -> None:  # fmt: skip
    """Rows with several new tokens; compiled per kind of multiplier by `_attend_chunks_for`."""
    raise TypeError("runs compiled only")


@overload(_attend_chunks)
def _attend_chunks_for(  # type: ignore[no-untyped-def]  # numba compares the signatures, annotations too
    q, k_cache, v_cache, multiplier, table, chunks, parts, scale, window, softcap, sinks, out
):  # fmt: skip
    if isinstance(multiplier, types.NoneType):

        def wide(q, k_cache, v_cache, multiplier, table, chunks, parts, scale, window, softcap, sinks, out):  # type: ignore[no-untyped-def]
            cpu_chunk.attend_chunks(
                q, k_cache, v_cache, table, chunks, parts, scale, window, softcap, sinks, out
            )

        return wide

    def narrow(q, k_cache, v_cache, multiplier, table, chunks, parts, scale, window, softcap, sinks, out):  # type: ignore[no-untyped-def]
        cpu_narrow_chunk.attend_chunks(
            q, k_cache, v_cache, multiplier, table, chunks, parts, scale, window, softcap, sinks, out
        )

    return narrow
