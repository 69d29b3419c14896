"""Matrix products of float32 in register tiles, in LLVM's own language: the inner loop of the compiled CPU kernels.

A tile is up to `TILE_ROWS` rows of float32 sums that stay in vector registers while a loop runs over what is summed.
numba alone does not keep them there. The intrinsic takes addresses and strides in bytes.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from engine.kernels.cpu.llvm.instructions import (
    F32,
    HAS_512_BITS,
    I64,
    fma_of,
    load_float32,
    load_splat,
    prefetch_line,
    start_sums,
    switch_rows,
)

# Two vector registers per row, and as many rows as leave registers for the panel and a broadcast of x: 12 of 16
# registers hold sums (24 of 32 with AVX-512), and each loaded value takes part in that many multiplications.
PANEL = 32 if HAS_512_BITS else 16
TILE_ROWS = 12 if HAS_512_BITS else 6

_UNROLL = 4
AHEAD_BITS = 8  # fractional bits of the prefetch address's step

_LANES = ir.VectorType(F32, PANEL)


def _emit_tile(builder: Any, arguments: Any, rows: int, element_bytes: int) -> None:
    """out[i, :] = start[i, :] + sum over k of x[i, k] * panel[k, :], for i < rows, with all sums in registers."""
    x, x_stride, panel, num_k, out, out_stride, start, start_stride, ahead, ahead_step = arguments
    fma = fma_of(builder, PANEL)
    line_bytes = I64(PANEL * element_bytes)
    x_rows = [builder.add(x, builder.mul(x_stride, I64(i))) for i in range(rows)]

    starts = [builder.add(start, builder.mul(start_stride, I64(i))) for i in range(rows)]
    sums = start_sums(builder, start, starts, _LANES)
    unrolled_end = builder.and_(num_k, I64(-_UNROLL))
    at = I64(0)
    for unroll, end in ((_UNROLL, unrolled_end), (1, num_k)):
        before = builder.block
        check, body, after = (builder.append_basic_block(name) for name in ("check", "body", "after"))
        builder.branch(check)
        builder.position_at_end(check)
        k = builder.phi(I64)
        k.add_incoming(at, before)
        phis = []
        for value in sums:
            phi = builder.phi(_LANES)
            phi.add_incoming(value, before)
            phis.append(phi)
        builder.cbranch(builder.icmp_signed("<", k, end), body, after)
        builder.position_at_end(body)
        current = list(phis)
        for u in range(unroll):
            this_k = builder.add(k, I64(u))
            line = load_float32(
                builder, builder.add(panel, builder.mul(this_k, line_bytes)), element_bytes, PANEL
            )
            offset = builder.mul(this_k, I64(4))
            if unroll > 1:
                step = builder.ashr(builder.mul(this_k, ahead_step), I64(AHEAD_BITS))
                prefetch_line(builder, builder.add(ahead, step), into_l2=True)
            for i in range(rows):
                value = load_splat(builder, builder.add(x_rows[i], offset), PANEL)
                current[i] = builder.call(fma, [value, line, current[i]])
        k.add_incoming(builder.add(k, I64(unroll)), body)
        for phi, value in zip(phis, current, strict=True):
            phi.add_incoming(value, body)
        builder.branch(check)
        builder.position_at_end(after)
        at, sums = k, phis
    for i in range(rows):
        address = builder.add(out, builder.mul(out_stride, I64(i)))
        builder.store(sums[i], builder.inttoptr(address, _LANES.as_pointer()), align=4)


def _tile_of(
    typing_context: Any,
    rows: Any,
    x: Any,
    x_stride: Any,
    panel: Any,
    element: Any,
    num_k: Any,
    out: Any,
    out_stride: Any,
    start: Any,
    start_stride: Any,
    ahead: Any,
    ahead_step: Any,
) -> Any:
    """out[i, :PANEL] = start[i, :PANEL] + x[i, :num_k] @ panel for i < rows (at most TILE_ROWS). `start` 0: sums start
    from 0. With each line of the panel, the memory at `ahead` is prefetched, an address that advances by
    `ahead_step` / 2**AHEAD_BITS. `element` is any weight, for its type."""
    element_bytes = element.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = [*arguments[1:4], *arguments[5:]]
        switch_rows(
            builder, arguments[0], lambda rows: _emit_tile(builder, numbers, rows, element_bytes), TILE_ROWS
        )
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64, element, i64, i64, i64, i64, i64, i64, i64), generate


tile: Any = intrinsic(_tile_of)
