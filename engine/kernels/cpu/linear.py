"""Linear layers on a CPU with float32 activations and sums, compiled by numba.

Weights keep the dtype that they are stored in. bfloat16 is converted in registers, so a step reads half the memory
that float32 weights would take. Weights are packed in panels of `PANEL` output columns, [N / PANEL, K, PANEL]: a tile
of a few rows of x and one panel is computed in registers from memory that is read in order. A panel stays in the caches
while all rows are multiplied by it:

             PANEL
      K  +---------+            for each block of rows that fits the L2 cache
         | panel p |                for each panel
    +----+---------+                    for each tile of TILE_ROWS rows
    | x  | tile    | TILE_ROWS
    +----+---------+

Importing this module imports numba; the kernels compile on their first call and are cached on disk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, prange, types

from engine.kernels.cpu.llvm.calls import address_of, caller_of
from engine.kernels.cpu.llvm.exponentials import LANES, silu_gated
from engine.kernels.cpu.llvm.register_tiles import AHEAD_BITS, PANEL, TILE_ROWS, tile
from engine.kernels.cpu.scalars import FAST

_ROW_BLOCK_BYTES = 256 * 1024  # of x, which shares an L2 cache of at least 512 KiB with a panel
_SOON_BYTES = 4096  # prefetch distance: far enough for a read from memory, but only a small part of a panel

STORE, ADD, GATED = 0, 1, 2  # what `linear` does with its products


@njit(error_model="numpy", cache=True, nogil=True, fastmath=FAST)
def _linear_part(thread: Any, x: Any, panels: Any, bias: Any, mode: Any, num_threads: Any, out: Any) -> None:
    num_rows = x.shape[0]
    num_panels, num_k, _ = panels.shape
    panel_bytes = panels.strides[0]
    x_stride, out_stride = x.strides[0], out.strides[0]
    block = max(1, _ROW_BLOCK_BYTES // (4 * num_k) // TILE_ROWS) * TILE_ROWS
    num_blocks = (num_rows + block - 1) // block
    soon = _SOON_BYTES
    unit = 2 if mode == GATED else 1  # a gate's panel and its partner stay together
    first_panel = num_panels // unit * thread // num_threads * unit
    last_panel = num_panels // unit * (thread + 1) // num_threads * unit
    products = np.empty((2, TILE_ROWS, PANEL), dtype=np.float32)
    for b in range(num_blocks):
        first_row = num_rows * b // num_blocks
        rows = num_rows * (b + 1) // num_blocks - first_row
        num_tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
        share = panel_bytes // num_tiles
        for p in range(first_panel, last_panel, unit):
            panel = panels.ctypes.data + p * panel_bytes
            for t in range(num_tiles):
                row = first_row + rows * t // num_tiles
                count = first_row + rows * (t + 1) // num_tiles - row
                to = out.ctypes.data + row * out_stride + p * PANEL * 4
                to_stride = out_stride
                start, start_stride = 0, 0
                if mode == GATED:
                    to, to_stride = products.ctypes.data, PANEL * 4
                elif mode == ADD:
                    start, start_stride = to, out_stride
                elif bias.size > 0:
                    start = bias.ctypes.data + p * PANEL * 4
                for u in range(unit):
                    tile(
                        count,
                        x.ctypes.data + row * x_stride,
                        x_stride,
                        panel + u * panel_bytes,
                        panels[0, 0, 0],
                        num_k,
                        to + u * TILE_ROWS * PANEL * 4,
                        to_stride,
                        start,
                        start_stride,
                        # A lone tile prefetches what it needs soon; several prefetch shares of the next panel.
                        panel
                        + u * panel_bytes
                        + (soon if num_tiles == 1 else unit * panel_bytes + share * t),
                        (PANEL * panels.itemsize << AHEAD_BITS) // num_tiles,
                    )
                if mode == GATED:
                    gated = out.ctypes.data + row * out_stride + p // 2 * PANEL * 4
                    for i in range(count):
                        for c in range(0, PANEL, LANES):
                            gate = products.ctypes.data + (i * PANEL + c) * 4
                            silu_gated(gate, gate + TILE_ROWS * PANEL * 4, gated + i * out_stride + c * 4)


_call_part = caller_of(_linear_part)


def code_of_parts(element: Any) -> int:
    """The address of the code of a thread's part, for the element type of the weights."""
    floats, rows = types.float32[::1], types.float32[:, ::1]
    return address_of(
        _linear_part, types.int64, rows, element[:, :, ::1], floats, types.int64, types.int64, rows
    )


@njit(parallel=True, cache=True, nogil=True)
def linear(
    code: Any,  # `code_of_parts`
    x: Any,  # [T, >= K] float32
    panels: Any,  # [N / PANEL, K, PANEL] float32, or bfloat16 as uint16
    bias: Any,  # [N] float32, or empty; only read if mode is STORE
    mode: Any,
    num_threads: Any,
    out: Any,  # [T, N] float32, written; with GATED [T, N / 2]
) -> None:
    """STORE: out = x @ weight.T + bias. ADD: out += x @ weight.T. GATED: out = silu(gate) * partner, with panels of the
    gate and of its partner alternating, as `interleave` returns them."""
    for thread in prange(num_threads):
        _call_part(code, (np.int64(thread), x, panels, bias, mode, num_threads, out))


def padded(columns: int) -> int:
    """The number of columns, rounded up to a multiple of PANEL."""
    return -(-columns // PANEL) * PANEL


def pack(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Packs a weight [N, K] (float32, or bfloat16 as uint16) into panels, with zeros in the columns that pad N."""
    num_columns, num_k = weight.shape
    panels = np.zeros((padded(num_columns) // PANEL, num_k, PANEL), dtype=weight.dtype)
    for p in range(len(panels)):
        part = weight[p * PANEL : (p + 1) * PANEL]
        panels[p, :, : len(part)] = part.T
    return panels


def interleave(gate: npt.NDArray[Any], partner: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Packs two weights of one shape [N, K] into alternating panels, as `linear` takes them for GATED."""
    panels = np.stack([pack(gate), pack(partner)], axis=1)
    return panels.reshape(-1, *panels.shape[2:])
