"""Linear layers on a CPU with AMX: bfloat16 activations and weights, sums in float32 (see `cpu_amx` for the tiles).

Weights lie in panels of `COLUMNS` output columns, in the order in which tiles read them. A panel stays in the caches
while all rows pass by it. What is added to starts out in the tiles, so that nothing is left to do after them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from engine.kernels.cpu_amx import (
    COLUMNS,
    ROWS,
    STEP,
    STEP_BYTES,
    TILE,
    aligned,
    load_config,
    multiply_streamed,
    save_config,
)
from engine.kernels.cpu_rows import silu_gated

_SOON_BYTES = 8192  # how far ahead of its use a panel is asked for, where there is one block of rows

STORE, ADD, GATED = 0, 1, 2  # what `linear` does with its products


@njit(parallel=True, cache=True, nogil=True)
def linear(
    num_rows: Any,
    x: Any,  # [num_rows to the next multiple of ROWS, >= K] bfloat16 as uint16
    panels: Any,  # [N / COLUMNS, K / STEP, STEP_BYTES / 2] bfloat16 as uint16
    config: Any,  # `cpu_amx.CONFIG`
    mode: Any,
    num_threads: Any,
    out: Any,  # [as many rows as x, N] float32, written; with GATED [num_rows, N / 2] bfloat16 as uint16
) -> None:
    """STORE: out = x @ weight.T. ADD: out += x @ weight.T. GATED: panels as `interleave` makes them, and
    out = silu(gate) * partner. Rows beyond num_rows come out as anything."""
    num_panels, num_steps = panels.shape[0], panels.shape[1]
    panel_bytes = panels.strides[0]
    num_blocks = (num_rows + ROWS - 1) // ROWS
    for thread in prange(num_threads):
        products = aligned(ROWS * COLUMNS * 4).view(np.float32).reshape(ROWS, COLUMNS)
        before = np.empty(64, dtype=np.uint8)
        save_config(before.ctypes.data)
        load_config(config.ctypes.data)
        for p in range(num_panels * thread // num_threads, num_panels * (thread + 1) // num_threads):
            panel = panels.ctypes.data + p * panel_bytes
            for block in range(num_blocks):
                first = block * ROWS
                rows = min(ROWS, num_rows - first)
                to, to_stride = products.ctypes.data, products.strides[0]
                if mode != GATED:
                    to, to_stride = out.ctypes.data + first * out.strides[0] + p * COLUMNS * 4, out.strides[0]
                multiply_streamed(
                    rows,
                    num_steps,
                    x.ctypes.data + first * x.strides[0],
                    x.strides[0],
                    panel,
                    to if mode == ADD else 0,
                    to_stride,
                    to,
                    to_stride,
                    # One block asks for what comes soon; of several, each for its share of the next panel.
                    panel
                    + (
                        _SOON_BYTES
                        if num_blocks == 1
                        else panel_bytes + block * (STEP_BYTES // 4) % STEP_BYTES
                    ),
                )
                if mode == GATED:
                    for i in range(rows):
                        gate = products.ctypes.data + i * COLUMNS * 4
                        target = out.ctypes.data + (first + i) * out.strides[0] + p * TILE * 2
                        silu_gated(gate, gate + TILE * 4, target)
        load_config(before.ctypes.data)


def pack(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A weight [N, K] of bfloat16 as uint16, K a multiple of STEP, as panels; zeros for the columns that pad N."""
    num_columns, num_k = weight.shape
    num_panels = -(-num_columns // COLUMNS)
    whole = np.zeros((num_panels * COLUMNS, num_k), dtype=weight.dtype)
    whole[:num_columns] = weight
    tiles = whole.reshape(num_panels, 2, TILE, num_k // STEP, STEP // 2, 2).transpose(0, 3, 1, 4, 2, 5)
    panels: npt.NDArray[Any] = aligned(whole.nbytes).view(weight.dtype)
    panels.reshape(tiles.shape)[...] = tiles
    return panels.reshape(num_panels, num_k // STEP, STEP_BYTES // 2)


def interleave(gate: npt.NDArray[Any], partner: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Two weights of one shape [N, K] as panels of TILE columns of each, as `linear` takes them for GATED."""
    num_columns, num_k = gate.shape
    whole = np.zeros((2, -(-num_columns // TILE) * TILE, num_k), dtype=gate.dtype)
    whole[:, :num_columns] = gate, partner
    return pack(whole.reshape(2, -1, TILE, num_k).swapaxes(0, 1).reshape(-1, num_k))
