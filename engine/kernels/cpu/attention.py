"""Attention on a CPU: compiled kernels, or torch's operations without numba and for dtypes that have no kernel."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.cpu import attention_torch
from engine.kernels.layout import IntArray, StepLayout
from engine.kernels.reference.slots import store_kv

HAS_NUMBA = importlib.util.find_spec("numba") is not None

# To bring K and V of a position together takes as long as to attend to so many.
GATHER_WORK = 8

_NO_SINKS = np.empty(0, dtype=np.float32)
_codes: dict[tuple[Any, ...], tuple[int, int, Any]] = {}


def attention(
    q: torch.Tensor,  # [T, Hq, D]
    k: torch.Tensor,  # [T, Hkv, D]
    v: torch.Tensor,  # [T, Hkv, Dv]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], written
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv], written
    layout: StepLayout,
    options: AttentionOptions,
) -> torch.Tensor:  # [T, Hq, Dv], q's dtype
    """`engine.kernels.reference.attention`, fast."""
    store_kv(k, v, k_cache, v_cache, layout.slot_mapping)
    is_compiled = is_compiled_for(q.dtype)
    # The compiled kernels round as they store, as they do for the fused decoder.
    out = torch.empty(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype if is_compiled else torch.float32)
    attend = _attend_compiled if is_compiled else attention_torch.attend
    attend(q, k_cache, v_cache, layout, options, out)
    return out.to(q.dtype)


def is_compiled_for(dtype: torch.dtype) -> bool:
    """Whether the compiled kernels read caches of this dtype."""
    return HAS_NUMBA and dtype in (torch.float32, torch.bfloat16)


def numpy_view(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as a numpy array; bfloat16, which numpy does not have, as uint16 of the same bits."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()


def _attend_compiled(
    q: torch.Tensor,  # [T, Hq, D]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], the step's own K stored
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv]
    layout: StepLayout,
    options: AttentionOptions,
    out: torch.Tensor,  # [T, Hq, Dv] of q's dtype, written
) -> None:
    from engine.kernels.cpu.step_attention import attend
    from engine.kernels.cpu.threads import use_threads

    num_threads = use_threads(torch.get_num_threads())
    keys, values = numpy_view(k_cache), numpy_view(v_cache)
    sinks = _NO_SINKS if options.sinks is None else options.sinks.detach().float().numpy()
    rows = numpy_view(out)
    attend(
        q.float().contiguous().numpy(),
        keys,
        values,
        attention_code(keys.dtype, keys.shape[2], values.shape[2], rows.dtype),
        attention_work(layout, keys.shape[1], num_threads),
        np.float32(options.scale),
        options.window or 0,
        np.float32(options.softcap or 0.0),
        sinks,
        rows,
    )


def attention_code(
    dtype: np.dtype[Any], size: int, size_v: int, out_dtype: np.dtype[Any]
) -> tuple[int, int, Any]:
    """The code that `step_attention.attend` takes, for caches of this `numpy_view` dtype and these head sizes, and for
    outputs of `out_dtype`. It is compiled by the first call."""
    from engine.kernels.cpu import multiply_bf16, step_attention

    fits = dtype == np.uint16 and size % multiply_bf16.STEP == size_v % multiply_bf16.PANEL == 0
    multiplier = multiply_bf16.multiplier() if fits else None
    key = (dtype, out_dtype, id(multiplier))  # the code holds the multiplier
    code = _codes.get(key)
    if code is None:
        code = _codes[key] = step_attention.code_of(dtype, out_dtype, multiplier)
    return code


def attention_work(layout: StepLayout, num_kv_heads: int, num_threads: int) -> tuple[Any, ...]:
    """The rows of a step as `step_attention.attend` takes them, for all layers with this many key/value heads."""
    work = layout.scratch.get(("work", num_kv_heads))
    if work is None:
        work = _work(layout, layout.single_token_rows, layout.longer_rows, num_kv_heads, num_threads)
        layout.scratch["work", num_kv_heads] = work
    return work


def _work(
    layout: StepLayout, single: IntArray, longer: IntArray, num_kv_heads: int, num_threads: int
) -> tuple[Any, ...]:
    num_single, num_longer = single.shape[1], longer.shape[1]
    # With enough rows for all threads, a unit is one row. Otherwise heads are split too, so that no thread idles.
    heads_per_unit = num_kv_heads if num_single >= 4 * num_threads else 1
    parts = -(-2 * num_threads // (num_longer * num_kv_heads)) if num_longer else 1
    order = _balanced_order(single[4], num_threads)
    if num_longer > 1:
        starts, counts = longer[1].astype(np.int64), longer[2]
        work = counts * (starts + counts // 2) + GATHER_WORK * (starts + counts)
        longer = np.ascontiguousarray(longer[:, _balanced_order(work, num_threads)])
    return layout.slot_table.numpy(), single, order, longer, heads_per_unit, parts


def attention_work_of_last(
    layout: StepLayout, wanted: IntArray, num_kv_heads: int, num_threads: int
) -> tuple[Any, ...] | None:
    """The same for a step of nothing but the tokens `wanted`, as rows of one token in this order. None unless each of
    them is the last of its row: several tokens of a row are computed faster together."""
    host = layout.host
    rows = np.searchsorted(host[3], wanted, side="right") - 1
    if ((host[3] + host[2])[rows] != wanted + 1).any():
        return None
    ends = (host[1] + host[2])[rows]
    single = np.stack(
        [host[0][rows], ends - 1, np.ones_like(ends), np.arange(len(ends), dtype=ends.dtype), ends]
    )
    return _work(layout, single, layout.longer_rows[:, :0], num_kv_heads, num_threads)


def _balanced_order(work: npt.NDArray[Any], num_threads: int) -> IntArray:
    """Deals the rows out to the threads by their work, so that each thread's contiguous share takes equally long."""
    by_work = np.argsort(work)
    order = np.concatenate([by_work[thread::num_threads] for thread in range(num_threads)])
    return order.astype(np.int32)
