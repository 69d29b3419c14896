"""Products of bfloat16 with sums in float32, by what a CPU has for them: tiles (AMX, `cpu_amx`: eight times the
rate of float32) or vectors of pairs (AVX512_BF16, `cpu_pairs`: twice the rate).

                    b: 32 columns               b as it is packed: for each STEP two blocks of 1 KiB, one for 16
                +-------+-------+               columns each, [STEP / 2, 16, 2]: two values that are summed lie
           STEP |       |       |               together, for both multiply them in pairs
        +------++-------+-------+
      a |      ||  sums         |
        | rows ||               |
        +------++-------+-------+

Kernels take the multiplier as an argument, whose type decides what is compiled: `cpu_amx.CONFIG` or `PAIRS`. Memory of
`a` and of the result holds ROWS or a multiple, whatever is in those too many, and starts at a cache line (`aligned`): a
line that lies in two is loaded twice, which made tiles 1.7 times slower. The intrinsics take addresses and strides in
bytes.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from engine.kernels.cpu.llvm import amx as cpu_amx
from engine.kernels.cpu.llvm import avx512_bf16 as cpu_pairs
from engine.kernels.cpu.llvm.amx import CONFIG
from engine.kernels.cpu.scalars import CACHE_LINE_BYTES

STEP = 32  # of what is summed, at a time
PANEL = 32  # of a panel
ROWS = 32  # of a block of rows
TILE = 16  # columns of a vector of sums
STEP_BYTES = 2048  # of a panel

PAIRS = ()


@functools.cache
def multiplier() -> Any:
    """What multiplies bfloat16 on this CPU, as the kernels take it; None where nothing does."""
    from torch.cpu import _init_amx, _is_amx_tile_supported, _is_avx512_bf16_supported

    if not _is_avx512_bf16_supported():  # CPUs with tiles have it too, and roundings need it
        return None
    return CONFIG if _is_amx_tile_supported() and _init_amx() else PAIRS


@njit(cache=True, nogil=True)
def aligned(num_bytes: Any) -> Any:
    """[num_bytes] uint8 of any content, from the start of a cache line on."""
    memory = np.empty(num_bytes + CACHE_LINE_BYTES, dtype=np.uint8)
    first = -memory.ctypes.data % CACHE_LINE_BYTES
    return memory[first : first + num_bytes]


def _has_tiles(multiplier: Any) -> bool:
    return isinstance(multiplier, types.Array)


def _acquire_of(typing_context: Any, multiplier: Any, saved: Any) -> Any:
    """Makes this thread's multiplier ready. What `release` will restore of it goes to 64 bytes at `saved`: oneDNN
    remembers how it configured tiles and does not do it again."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _has_tiles(multiplier):
            config = context.make_array(multiplier)(context, builder, arguments[0]).data
            cpu_amx.save_config(builder, arguments[1])
            cpu_amx.load_config(builder, builder.ptrtoint(config, arguments[1].type))
        return context.get_dummy_value()

    return types.void(multiplier, types.int64), generate


def _release_of(typing_context: Any, multiplier: Any, saved: Any) -> Any:
    """Leaves the multiplier as `acquire` found it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _has_tiles(multiplier):
            cpu_amx.load_config(builder, arguments[1])
        return context.get_dummy_value()

    return types.void(multiplier, types.int64), generate


def _multiply_of(
    typing_context: Any,
    multiplier: Any,
    rows: Any,
    num_steps: Any,
    a: Any,
    a_stride: Any,
    b: Any,
    start: Any,
    start_stride: Any,
    out: Any,
    out_stride: Any,
    part: Any,
    parts: Any,
) -> Any:
    """out[i, :PANEL] = start[i, :PANEL] + a[i, :] @ b for i < rows (1 to ROWS), STEP * num_steps values summed in
    float32, num_steps above 0; `start` 0: no start. Of `a`, `start` and `out`, up to ROWS rows may be read or
    written.

    This is call `part` of `parts` with this b, where memory is read on from b to its like right behind it: what is
    needed next is asked for ahead of its use. Both are None where it is not."""
    is_alone = isinstance(parts, types.NoneType)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = cpu_amx.emit_multiply if _has_tiles(multiplier) else cpu_pairs.emit_multiply
        emit(builder, *values[1:10], ahead=() if is_alone else values[10:])
        return context.get_dummy_value()

    ahead = (part, parts) if is_alone else (types.int64, types.int64)
    return types.void(multiplier, *[types.int64] * 9, *ahead), generate


acquire: Any = intrinsic(_acquire_of)
release: Any = intrinsic(_release_of)
multiply: Any = intrinsic(_multiply_of)
