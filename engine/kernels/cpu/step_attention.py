"""Compiled attention of a whole step: first the rows that compute one token, then those that compute several."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import from_dtype, types
from numba.extending import overload, register_jitable

from engine.kernels.cpu import decode_attention, prefill_attention, prefill_attention_bf16
from engine.kernels.cpu.decode_attention import attend_singles


def code_of(cache: npt.DTypeLike, out: npt.DTypeLike, multiplier: Any) -> tuple[int, int, Any]:
    """What `attend` takes as its code, for these element types of the caches and of the output. `multiplier`, of
    `multiply_bf16`: what computes rows of several tokens, in which the caches are bfloat16; None: they are computed in
    float32."""
    elements, outputs = from_dtype(np.dtype(cache)), from_dtype(np.dtype(out))
    singles = decode_attention.code_of_units(elements, outputs)
    if multiplier is None:
        return singles, prefill_attention.code_of_units(elements, outputs), None
    return singles, prefill_attention_bf16.code_of_units(multiplier, outputs), multiplier


# Inlined into the compiled functions that call it. They would compile it once more.
@register_jitable(inline="always")
def attend(
    q: Any,  # [T, Hq, D] float32
    k_cache: Any,  # [num_slots, Hkv, D] float32, or bfloat16 as uint16
    v_cache: Any,  # [num_slots, Hkv, Dv]
    code: Any,  # `code_of`
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
            code[0], q, k_cache, v_cache, table, single[3], single[0], single[4], order, scale, window, softcap, sinks,
            heads_per_unit, out,
        )  # fmt: skip
    if longer.shape[1] > 0:
        attend_chunks(code, q, k_cache, v_cache, table, longer, parts, scale, window, softcap, sinks, out)


def attend_chunks(
    code: Any, q: Any, k_cache: Any, v_cache: Any, table: Any, chunks: Any, parts: Any, scale: Any, window: Any,
    softcap: Any, sinks: Any, out: Any,
) -> None:  # fmt: skip
    """The rows that compute several tokens. In compiled functions, `_attend_chunks_for` makes the choice, so that only
    one of the two is compiled."""
    if code[2] is None:
        prefill_attention.attend_chunks(
            code[1], q, k_cache, v_cache, table, chunks, parts, scale, window, softcap, sinks, out
        )
    else:
        prefill_attention_bf16.attend_chunks(
            code[1], q, k_cache, v_cache, code[2], table, chunks, parts, scale, window, softcap, sinks, out
        )


@overload(attend_chunks, inline="always")
def _attend_chunks_for(  # type: ignore[no-untyped-def]  # numba compares the signatures, annotations too
    code, q, k_cache, v_cache, table, chunks, parts, scale, window, softcap, sinks, out
):
    if isinstance(code[2], types.NoneType):
        return lambda code, q, k_cache, v_cache, table, chunks, parts, scale, window, softcap, sinks, out: (
            prefill_attention.attend_chunks(
                code[1], q, k_cache, v_cache, table, chunks, parts, scale, window, softcap, sinks, out
            )
        )
    return lambda code, q, k_cache, v_cache, table, chunks, parts, scale, window, softcap, sinks, out: (
        prefill_attention_bf16.attend_chunks(
            code[1], q, k_cache, v_cache, code[2], table, chunks, parts, scale, window, softcap, sinks, out
        )
    )
