"""Linear layers on a CPU with bfloat16 activations and weights and float32 sums, by the products of `multiply_bf16`.

Weights lie in panels of `PANEL` output columns, in the order in which they are read. A panel stays in the caches
while all rows are multiplied by it. Sums start from the bias or the output that they are added to, so no pass over the
output follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange, typeof, types

from engine.kernels.cpu.linear import ADD, GATED
from engine.kernels.cpu.llvm.calls import address_of, caller_of
from engine.kernels.cpu.llvm.exponentials import silu_gated_bf16
from engine.kernels.cpu.multiply_bf16 import (
    PANEL,
    ROWS,
    STEP,
    STEP_BYTES,
    TILE,
    acquire,
    aligned,
    multiply,
    release,
)


@njit(error_model="numpy", cache=True, nogil=True)
def _linear_part(
    thread: Any,
    x: Any,
    panels: Any,
    multiplier: Any,
    bias: Any,
    mode: Any,
    num_threads: Any,
    out: Any,
    out_stride: Any,
) -> None:
    # `out` is an address, whatever the elements are.
    num_rows = x.shape[0]
    num_panels, num_steps = panels.shape[0], panels.shape[1]
    panel_bytes = panels.strides[0]
    num_blocks = (num_rows + ROWS - 1) // ROWS
    products = aligned(ROWS * PANEL * 4).view(np.float32).reshape(ROWS, PANEL)
    before = np.empty(64, dtype=np.uint8)
    acquire(multiplier, before.ctypes.data)
    for p in range(num_panels * thread // num_threads, num_panels * (thread + 1) // num_threads):
        panel = panels.ctypes.data + p * panel_bytes
        for block in range(num_blocks):
            first = block * ROWS
            rows = min(ROWS, num_rows - first)
            to, to_stride = products.ctypes.data, products.strides[0]
            start, start_stride = 0, 0
            if mode != GATED:
                to, to_stride = out + first * out_stride + p * PANEL * 4, out_stride
            if mode == ADD:
                start, start_stride = to, to_stride
            elif bias.size > 0:
                start = bias.ctypes.data + p * PANEL * 4  # the same for every row
            multiply(
                multiplier,
                rows,
                num_steps,
                x.ctypes.data + first * x.strides[0],
                x.strides[0],
                panel,
                start,
                start_stride,
                to,
                to_stride,
                block,
                num_blocks,
            )
            if mode == GATED:
                for i in range(rows):
                    gate = products.ctypes.data + i * PANEL * 4
                    target = out + (first + i) * out_stride + p * TILE * 2
                    silu_gated_bf16(gate, gate + TILE * 4, target)
    release(multiplier, before.ctypes.data)


_call_part = caller_of(_linear_part)


def code_of_parts(multiplier: Any) -> int:
    """The address of the code of a thread's part, for this multiplier."""
    number, rows, panels = types.int64, types.uint16[:, ::1], types.uint16[:, :, ::1]
    kind = typeof(multiplier)  # type: ignore[no-untyped-call]
    return address_of(
        _linear_part,
        number,
        rows,
        panels,
        kind,
        types.float32[::1],
        number,
        number,
        number,
        number,
    )


@njit(parallel=True, cache=True, nogil=True)
def linear(
    code: Any,  # `code_of_parts`
    x: Any,  # [T, >= K] bfloat16 as uint16, in memory of T rounded up to a multiple of ROWS
    panels: Any,  # [N / PANEL, K / STEP, STEP_BYTES / 2] bfloat16 as uint16
    multiplier: Any,  # `multiply_bf16.multiplier()`
    bias: Any,  # [N] float32, or empty; only read if mode is STORE
    mode: Any,
    num_threads: Any,
    out: Any,  # [T, N] float32, in memory padded like x's, written; with GATED [T, N / 2] bfloat16 as uint16
) -> None:
    """STORE: out = x @ weight.T + bias. ADD: out += x @ weight.T. GATED: out = silu(gate) * partner, with panels as
    `interleave` returns them. The content of rows beyond T is undefined."""
    for thread in prange(num_threads):
        address = np.int64(out.ctypes.data)
        _call_part(
            code,
            (np.int64(thread), x, panels, multiplier, bias, mode, num_threads, address, out.strides[0]),
        )


def pack(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Packs a weight [N, K] of bfloat16 as uint16, K a multiple of STEP, with zeros in the columns that pad N."""
    num_columns, num_k = weight.shape
    num_panels = -(-num_columns // PANEL)
    whole = np.zeros((num_panels * PANEL, num_k), dtype=weight.dtype)
    whole[:num_columns] = weight
    tiles = whole.reshape(num_panels, 2, TILE, num_k // STEP, STEP // 2, 2).transpose(0, 3, 1, 4, 2, 5)
    panels: npt.NDArray[Any] = aligned(whole.nbytes).view(weight.dtype)
    panels.reshape(tiles.shape)[...] = tiles
    return panels.reshape(num_panels, num_k // STEP, STEP_BYTES // 2)


def interleave(gate: npt.NDArray[Any], partner: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Packs two weights of one shape [N, K] into panels with TILE columns of each, as `linear` takes for GATED."""
    num_columns, num_k = gate.shape
    whole = np.zeros((2, -(-num_columns // TILE) * TILE, num_k), dtype=gate.dtype)
    whole[:, :num_columns] = gate, partner
    return pack(whole.reshape(2, -1, TILE, num_k).swapaxes(0, 1).reshape(-1, num_k))
