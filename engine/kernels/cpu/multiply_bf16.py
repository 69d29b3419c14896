"""Products of bfloat16 with float32 sums, by the instructions that a CPU has for them.

AMX multiplies matrix tiles (`llvm.amx`: eight times the rate of float32), AVX512_BF16 multiplies vectors of pairs
(`llvm.avx512_bf16`: twice the rate).

                    b: 32 columns               b as it is packed: for each STEP two blocks of 1 KiB, one for 16
                +-------+-------+               columns each, [STEP / 2, 16, 2]: two values that are summed lie
           STEP |       |       |               side by side, since both instructions multiply them in pairs
        +------++-------+-------+
      a |      ||  sums         |
        | rows ||               |
        +------++-------+-------+

Kernels take the multiplier, `AMX` or `AVX512`, as an argument whose type decides what they are compiled to. The memory
of `a` and of the result has room for a multiple of ROWS rows, of any content beyond those that count, and starts at a
cache line (`aligned`): a line that straddles two is loaded twice, which made tiles 1.7 times slower. The intrinsics
take addresses, and strides in bytes.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from engine.kernels.cpu.llvm import amx, avx512_bf16
from engine.kernels.cpu.llvm.instructions import CACHE_LINE_BYTES

STEP = 32  # values of a row that are summed at a time
PANEL = 32  # columns of a panel
ROWS = 32  # rows of a block
TILE = 16  # columns of a vector of sums
STEP_BYTES = 2048  # bytes of a panel per STEP

AMX: Any = amx.TILE_CONFIG
AVX512: Any = ()


@functools.cache
def multiplier() -> Any:
    """The fastest multiplier of this CPU, as the kernels take it; None if it has none."""
    from torch.cpu import _init_amx, _is_amx_tile_supported, _is_avx512_bf16_supported

    if not _is_avx512_bf16_supported():  # CPUs with AMX have it too, and rounding needs it
        return None
    return AMX if _is_amx_tile_supported() and _init_amx() else AVX512


@njit(cache=True, nogil=True)
def aligned(num_bytes: Any) -> Any:
    """[num_bytes] uint8 of any content, starting at a cache line."""
    memory = np.empty(num_bytes + CACHE_LINE_BYTES, dtype=np.uint8)
    first = -memory.ctypes.data % CACHE_LINE_BYTES
    return memory[first : first + num_bytes]


def _is_amx(multiplier: Any) -> bool:
    return isinstance(multiplier, types.Array)


def _acquire_of(typing_context: Any, multiplier: Any, saved: Any) -> Any:
    """Prepares this thread's multiplier and saves the state that `release` restores to 64 bytes at `saved`: oneDNN
    remembers that it configured the tiles and does not configure them again."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _is_amx(multiplier):
            config = context.make_array(multiplier)(context, builder, arguments[0]).data
            amx.save_config(builder, arguments[1])
            amx.load_config(builder, builder.ptrtoint(config, arguments[1].type))
        return context.get_dummy_value()

    return types.void(multiplier, types.int64), generate


def _release_of(typing_context: Any, multiplier: Any, saved: Any) -> Any:
    """Restores the state that `acquire` saved."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _is_amx(multiplier):
            amx.load_config(builder, arguments[1])
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
    """out[i, :PANEL] = start[i, :PANEL] + a[i, :] @ b for i < rows (1 to ROWS), summing STEP * num_steps values in
    float32, num_steps above 0. `start` 0: sums start from 0. Up to ROWS rows of `a`, `start` and `out` may be read or
    written.

    If the next b lies right behind this one, `part` and `parts` say that this is call `part` of `parts` with this b, so
    that the calls together prefetch the next one. Otherwise both are None."""
    is_alone = isinstance(parts, types.NoneType)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = amx.emit_multiply if _is_amx(multiplier) else avx512_bf16.emit_multiply
        emit(builder, *values[1:10], ahead=() if is_alone else values[10:])
        return context.get_dummy_value()

    ahead = (part, parts) if is_alone else (types.int64, types.int64)
    return types.void(multiplier, *[types.int64] * 9, *ahead), generate


acquire: Any = intrinsic(_acquire_of)
release: Any = intrinsic(_release_of)
multiply: Any = intrinsic(_multiply_of)
