"""The code of `multiply_bf16.multiply` for CPUs with AMX, which multiply matrix tiles, in LLVM's own language.

A tile register holds 16 rows of 64 bytes. Four registers hold sums, 2 x 2; two of `a` and two of `b` are loaded and
multiplied per step, which sums 32 values:

                    b: 32 columns
                +-------+-------+
             32 |  t6   |  t7   |
        +------++-------+-------+
      a |  t4  ||  t0   |  t1   | 16 rows
        +------++-------+-------+
        |  t5  ||  t2   |  t3   | 16 rows
        +------++-------+-------+

16 or 32 rows are computed, even if fewer are requested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.ir as ir  # type: ignore[import-untyped]
import numpy as np

from engine.kernels.cpu.llvm.instructions import CACHE_LINE_BYTES, I64, declared, prefetch_line, repeat

_TILE = 16  # rows, and columns of float32
_BLOCK_BYTES = _TILE * CACHE_LINE_BYTES
_LINES_AHEAD, _SOON_BYTES = 8, 8192
_I8, _VOID = ir.IntType(8), ir.VoidType()
_POINTER = _I8.as_pointer()

# The CPU's tile configuration in memory: palette 1, eight tiles of 16 rows of 64 bytes.
TILE_CONFIG = np.zeros(64, dtype=np.uint8)
TILE_CONFIG[0] = 1
TILE_CONFIG[16:32:2] = CACHE_LINE_BYTES
TILE_CONFIG[48:56] = _TILE


def _call(builder: Any, name: str, kinds: list[Any], arguments: list[Any]) -> None:
    kind = ir.FunctionType(_VOID, kinds)
    builder.call(declared(builder.module, kind, f"llvm.x86.{name}"), arguments)


def save_config(builder: Any, address: Any) -> None:
    """Writes the configuration of this thread's tiles to 64 bytes at `address`."""
    _call(builder, "sttilecfg", [_POINTER], [builder.inttoptr(address, _POINTER)])


def load_config(builder: Any, address: Any) -> None:
    """Configures this thread's tiles from 64 bytes at `address`."""
    _call(builder, "ldtilecfg", [_POINTER], [builder.inttoptr(address, _POINTER)])


def emit_multiply(
    builder: Any, rows: Any, num_steps: Any, a: Any, a_stride: Any, b: Any, start: Any, start_stride: Any, out: Any,
    out_stride: Any, *, ahead: Sequence[Any],
) -> None:  # fmt: skip
    """Emits `multiply_bf16.multiply` with tiles that TILE_CONFIG configures; `ahead` is its (part, parts), or empty."""
    operands = (num_steps, a, a_stride, b, start, start_stride, out, out_stride)
    ahead_at = None
    if ahead:
        part, parts = ahead
        # Four blocks of rows together prefetch all of the next panel. A lone block prefetches a quarter of what it
        # needs soon and leaves the rest to the hardware prefetcher, which was no slower than prefetching everything.
        offset = builder.mul(builder.and_(part, I64(3)), I64(_LINES_AHEAD * CACHE_LINE_BYTES))
        next_at = builder.add(builder.mul(num_steps, I64(2 * _BLOCK_BYTES)), offset)
        is_alone = builder.icmp_signed("==", parts, I64(1))
        ahead_at = builder.add(b, builder.select(is_alone, I64(_SOON_BYTES), next_at))
    one, two, done = (builder.append_basic_block(name) for name in ("one", "two", "done"))
    builder.cbranch(builder.icmp_signed("<=", rows, I64(_TILE)), one, two)
    for block, row_tiles in ((one, 1), (two, 2)):
        builder.position_at_end(block)
        _emit(builder, row_tiles, *operands, ahead_at)
        builder.branch(done)
    builder.position_at_end(done)


def _emit(
    builder: Any, row_tiles: int, num_steps: Any, a: Any, a_stride: Any, b: Any, start: Any, start_stride: Any,
    out: Any, out_stride: Any, ahead: Any,
) -> None:  # fmt: skip
    sums = [(2 * r + c, r, c) for r in range(row_tiles) for c in range(2)]

    def load(tile: int, address: Any, stride: Any) -> None:
        pointer = builder.inttoptr(address, _POINTER)
        _call(builder, "tileloadd64", [_I8, _POINTER, I64], [_I8(tile), pointer, stride])

    def block_of(base: Any, stride: Any, r: int, c: int) -> Any:
        return builder.add(builder.add(base, builder.mul(stride, I64(_TILE * r))), I64(4 * _TILE * c))

    from_start, from_zero, ready = (builder.append_basic_block(name) for name in ("start", "zero", "ready"))
    builder.cbranch(builder.icmp_unsigned("!=", start, I64(0)), from_start, from_zero)
    builder.position_at_end(from_start)
    for tile, r, c in sums:
        load(tile, block_of(start, start_stride, r, c), start_stride)
    builder.branch(ready)
    builder.position_at_end(from_zero)
    for tile, _, _ in sums:
        _call(builder, "tilezero", [_I8], [_I8(tile)])
    builder.branch(ready)
    builder.position_at_end(ready)

    def add_step(step: Any, _: list[Any]) -> list[Any]:
        b_at = builder.add(b, builder.mul(step, I64(2 * _BLOCK_BYTES)))
        a_at = builder.add(a, builder.mul(step, I64(CACHE_LINE_BYTES)))
        load(6, b_at, I64(CACHE_LINE_BYTES))
        for tile, r, c in sums:
            # Each tile is loaded right before its first use: loads and products overlap.
            if c == 0:
                load(4 + r, builder.add(a_at, builder.mul(a_stride, I64(_TILE * r))), a_stride)
            if (r, c) == (0, 1):
                load(7, builder.add(b_at, I64(_BLOCK_BYTES)), I64(CACHE_LINE_BYTES))
            _call(builder, "tdpbf16ps", [_I8] * 3, [_I8(tile), _I8(4 + r), _I8(6 + c)])
            if ahead:
                step_ahead = builder.add(ahead, builder.mul(step, I64(2 * _BLOCK_BYTES)))
                for line in range(_LINES_AHEAD * tile // len(sums), _LINES_AHEAD * (tile + 1) // len(sums)):
                    prefetch_line(
                        builder, builder.add(step_ahead, I64(CACHE_LINE_BYTES * line)), into_l2=True
                    )
        return []

    repeat(builder, num_steps, [], add_step)
    for tile, r, c in sums:
        pointer = builder.inttoptr(block_of(out, out_stride, r, c), _POINTER)
        _call(builder, "tilestored64", [_I8, _POINTER, I64], [_I8(tile), pointer, out_stride])
