"""Matrix tiles of CPUs that have AMX: products of bfloat16 at eight times the rate of float32, in LLVM's own language.

A tile register holds 16 rows of 64 bytes. `multiply` keeps four of them as sums, 2 x 2, and passes two of `a` and two
of `b` by them, `STEP` of what is summed at a time:

                    b: 32 columns               b as it is packed: for each STEP two blocks of 1 KiB, one for 16
                +-------+-------+               columns each, [STEP / 2, 16, 2]: two values that are summed lie
           STEP |  t6   |  t7   |               together, for the CPU multiplies them in pairs
        +------++-------+-------+
      a |  t4  ||  t0   |  t1   | 16 rows
        +------++-------+-------+
        |  t5  ||  t2   |  t3   | 16 rows
        +------++-------+-------+

Rows are always 16 or 32: memory of `a` and of the result holds as many, whatever is in those too many. All of it
should start at a cache line (`aligned`): a tile row that lies in two lines is loaded twice, which was 1.7 times slower.
The intrinsics take addresses and strides in bytes.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.ir as ir  # type: ignore[import-untyped]
import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from engine.kernels.cpu_scalars import CACHE_LINE_BYTES
from engine.kernels.cpu_tiles import I64, declared, prefetch_line

STEP = 32  # of what is summed, at a time
COLUMNS = 32  # of a panel
ROWS = 32  # of a block of rows
TILE = 16  # rows of a tile, and columns of float32
STEP_BYTES = 2048  # of a panel

_I8, _VOID = ir.IntType(8), ir.VoidType()
_POINTER = _I8.as_pointer()
# Lines of what `ahead` points to, asked for at each step. Four blocks of rows ask for all of the next panel; one alone
# asks for a quarter of what comes soon and leaves the rest to the CPU's own guess, which was no slower than all of it.
_LINES_AHEAD = 8

# Palette 1, eight tiles of 16 rows of 64 bytes: what the CPU's tile configuration looks like in memory.
CONFIG = np.zeros(64, dtype=np.uint8)
CONFIG[0] = 1
CONFIG[16:32:2] = 64
CONFIG[48:56] = 16


@functools.cache
def has_tiles() -> bool:
    """Whether this CPU multiplies tiles of bfloat16 and the kernel lets this process do so."""
    from torch.cpu import _init_amx, _is_amx_tile_supported

    return bool(_is_amx_tile_supported() and _init_amx())


@njit(cache=True, nogil=True)
def aligned(num_bytes: Any) -> Any:
    """[num_bytes] uint8 of any content, from the start of a cache line on."""
    memory = np.empty(num_bytes + CACHE_LINE_BYTES, dtype=np.uint8)
    first = -memory.ctypes.data % CACHE_LINE_BYTES
    return memory[first : first + num_bytes]


def _call(builder: Any, name: str, kinds: list[Any], arguments: list[Any]) -> None:
    kind = ir.FunctionType(_VOID, kinds)
    builder.call(declared(builder.module, kind, f"llvm.x86.{name}"), arguments)


def _configuring(name: str) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, name, [_POINTER], [builder.inttoptr(arguments[0], _POINTER)])
        return context.get_dummy_value()

    return generate


def _save_config_of(typing_context: Any, address: Any) -> Any:
    """Writes how this thread's tiles are configured to 64 bytes at `address`. oneDNN remembers what it configured and
    does not do it again: who configures tiles puts back what was there."""
    return types.void(types.int64), _configuring("sttilecfg")


def _load_config_of(typing_context: Any, address: Any) -> Any:
    """Configures this thread's tiles by 64 bytes at `address`."""
    return types.void(types.int64), _configuring("ldtilecfg")


save_config: Any = intrinsic(_save_config_of)
load_config: Any = intrinsic(_load_config_of)


def _emit_multiply(builder: Any, arguments: Any, row_tiles: int, lines_ahead: int) -> None:
    num_steps, a, a_stride, b, start, start_stride, out, out_stride, ahead = arguments
    sums = [(2 * r + c, r, c) for r in range(row_tiles) for c in range(2)]

    def load(tile: int, address: Any, stride: Any) -> None:
        pointer = builder.inttoptr(address, _POINTER)
        _call(builder, "tileloadd64", [_I8, _POINTER, I64], [_I8(tile), pointer, stride])

    def block_of(base: Any, stride: Any, r: int, c: int) -> Any:
        return builder.add(builder.add(base, builder.mul(stride, I64(TILE * r))), I64(4 * TILE * c))

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
    body, after = builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.branch(body)
    builder.position_at_end(body)
    step = builder.phi(I64)
    step.add_incoming(I64(0), ready)
    b_at = builder.add(b, builder.mul(step, I64(STEP_BYTES)))
    a_at = builder.add(a, builder.mul(step, I64(2 * STEP)))
    ahead_at = builder.add(ahead, builder.mul(step, I64(STEP_BYTES)))
    load(6, b_at, I64(64))
    for tile, r, c in sums:
        # Each tile is loaded right before its first use: loads and products overlap.
        if c == 0:
            load(4 + r, builder.add(a_at, builder.mul(a_stride, I64(TILE * r))), a_stride)
        if (r, c) == (0, 1):
            load(7, builder.add(b_at, I64(STEP_BYTES // 2)), I64(64))
        _call(builder, "tdpbf16ps", [_I8] * 3, [_I8(tile), _I8(4 + r), _I8(6 + c)])
        for line in range(lines_ahead * tile // len(sums), lines_ahead * (tile + 1) // len(sums)):
            prefetch_line(builder, builder.add(ahead_at, I64(64 * line)), into_l2=True)
    following = builder.add(step, I64(1))
    step.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", following, num_steps), body, after)
    builder.position_at_end(after)
    for tile, r, c in sums:
        pointer = builder.inttoptr(block_of(out, out_stride, r, c), _POINTER)
        _call(builder, "tilestored64", [_I8, _POINTER, I64], [_I8(tile), pointer, out_stride])


def _multiply_with(lines_ahead: int) -> Any:
    def multiply_of(
        typing_context: Any,
        rows: Any,
        num_steps: Any,
        a: Any,
        a_stride: Any,
        b: Any,
        start: Any,
        start_stride: Any,
        out: Any,
        out_stride: Any,
        ahead: Any,
    ) -> Any:
        """out[i, :COLUMNS] = start[i, :COLUMNS] + a[i, :] @ b for i < rows (1 to ROWS), STEP * num_steps values summed
        in float32, num_steps above 0; `start` 0: no start. Of `a`, `start` and `out`, TILE or ROWS rows are read or
        written. Each step brings nearer `lines_ahead` lines at `ahead`, which moves as b does."""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            one, two, done = (builder.append_basic_block(name) for name in ("one", "two", "done"))
            builder.cbranch(builder.icmp_signed("<=", values[0], I64(TILE)), one, two)
            for block, row_tiles in ((one, 1), (two, 2)):
                builder.position_at_end(block)
                _emit_multiply(builder, values[1:], row_tiles, lines_ahead)
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64), generate

    return intrinsic(multiply_of)


multiply = _multiply_with(lines_ahead=0)
multiply_streamed = _multiply_with(_LINES_AHEAD)
