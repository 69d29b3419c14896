"""The code of `multiply_bf16.multiply` for CPUs with AVX512_BF16, which multiply vectors, in LLVM's own language.

A vector register holds 16 float32 sums, or 16 pairs of bfloat16. One instruction multiplies the pairs of two vectors
and adds both products of each pair to its sum. Rows are computed in groups whose sums fit into the registers beside two
vectors of `b` and a pair of `a` in all lanes:

                    b: 2 vectors of pairs
                +-------+-------+
      1 pair    |       |       |
        +------++-------+-------+
      a | pair ||       |       | up to 12 rows: 24 of 32 registers
        +------++-------+-------+
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.ir as ir  # type: ignore[import-untyped]

from engine.kernels.cpu.llvm.instructions import (
    CACHE_LINE_BYTES,
    F32,
    I32,
    I64,
    declared,
    prefetch_line,
    repeat,
    splat,
    start_sums,
    switch_rows,
)

_GROUP = 12  # rows
_LANES = 16
_PAIRS = 16  # of a step
_BLOCK_BYTES = _PAIRS * CACHE_LINE_BYTES
_STEP_BYTES = 2 * _BLOCK_BYTES
_SOON_BYTES = 8192
_UNROLL = 2  # pairs: with more, LLVM loads so far ahead that sums are spilled from their registers
_SUMS, _VECTOR = ir.VectorType(F32, _LANES), ir.VectorType(I32, _LANES)


def emit_multiply(
    builder: Any, rows: Any, num_steps: Any, a: Any, a_stride: Any, b: Any, start: Any, start_stride: Any, out: Any,
    out_stride: Any, *, ahead: Sequence[Any],
) -> None:  # fmt: skip
    """Emits `multiply_bf16.multiply`, in groups of about as many rows; `ahead` is its (part, parts), or empty."""
    num_groups = builder.sdiv(builder.add(rows, I64(_GROUP - 1)), I64(_GROUP))
    has_start = builder.icmp_unsigned("!=", start, I64(0))

    def add_group(group: Any, _: list[Any]) -> list[Any]:
        first = builder.sdiv(builder.mul(rows, group), num_groups)
        end = builder.sdiv(builder.mul(rows, builder.add(group, I64(1))), num_groups)
        a_rows, start_rows, out_rows = (
            builder.add(base, builder.mul(stride, first))
            for base, stride in ((a, a_stride), (start, start_stride), (out, out_stride))
        )
        start_rows = builder.select(has_start, start_rows, I64(0))
        prefetched = _prefetched(builder, num_steps, b, group, num_groups, *ahead) if ahead else None
        operands = (
            num_steps,
            a_rows,
            a_stride,
            b,
            start_rows,
            start_stride,
            out_rows,
            out_stride,
            prefetched,
        )
        switch_rows(builder, builder.sub(end, first), lambda rows: _emit(builder, rows, *operands), _GROUP)
        return []

    repeat(builder, num_groups, [], add_group)


def _prefetched(
    builder: Any, num_steps: Any, b: Any, group: Any, num_groups: Any, part: Any, parts: Any
) -> tuple[Any, Any]:
    """The address that a group prefetches at its first step, and the number of lines per step. A lone group prefetches
    what it needs soon; several groups each prefetch a share of the lines of each step of the next b."""
    all_groups = builder.mul(parts, num_groups)
    lines = builder.sdiv(builder.add(all_groups, I64(2 * _PAIRS - 1)), all_groups)  # rounded up
    index = builder.add(builder.mul(part, num_groups), group)
    offset = builder.mul(builder.srem(builder.mul(index, lines), I64(2 * _PAIRS)), I64(CACHE_LINE_BYTES))
    next_at = builder.add(builder.mul(num_steps, I64(_STEP_BYTES)), offset)
    is_alone = builder.icmp_signed("==", all_groups, I64(1))
    return builder.add(b, builder.select(is_alone, I64(_SOON_BYTES), next_at)), lines


def _emit(
    builder: Any, rows: int, num_steps: Any, a: Any, a_stride: Any, b: Any, start: Any, start_stride: Any, out: Any,
    out_stride: Any, ahead: tuple[Any, Any] | None,
) -> None:  # fmt: skip
    multiply = declared(
        builder.module, ir.FunctionType(_SUMS, [_SUMS, _VECTOR, _VECTOR]), "llvm.x86.avx512bf16.dpbf16ps.512"
    )

    def places(base: Any, stride: Any) -> list[Any]:
        return [
            builder.add(builder.add(base, builder.mul(stride, I64(row))), I64(column * CACHE_LINE_BYTES))
            for row in range(rows)
            for column in range(2)
        ]

    def add_pair(line_at: Any, value_at: Any, sums: list[Any]) -> list[Any]:
        addresses = [builder.add(line_at, I64(column * _BLOCK_BYTES)) for column in range(2)]
        lines = [
            builder.load(builder.inttoptr(address, _VECTOR.as_pointer()), align=CACHE_LINE_BYTES)
            for address in addresses
        ]
        added = []
        for row in range(rows):
            address = builder.add(value_at, builder.mul(a_stride, I64(row)))
            value = builder.load(builder.inttoptr(address, I32.as_pointer()), align=4)
            in_all = splat(builder, value, _LANES)
            added += [builder.call(multiply, [sums[2 * row + c], in_all, lines[c]]) for c in range(2)]
        return added

    def add_step(step: Any, sums: list[Any]) -> list[Any]:
        b_at = builder.add(b, builder.mul(step, I64(_STEP_BYTES)))
        a_at = builder.add(a, builder.mul(step, I64(4 * _PAIRS)))
        if ahead:
            _prefetch(builder, builder.add(ahead[0], builder.mul(step, I64(_STEP_BYTES))), ahead[1])

        def add_pairs(index: Any, sums: list[Any]) -> list[Any]:
            for u in range(_UNROLL):
                pair = builder.add(builder.mul(index, I64(_UNROLL)), I64(u))
                line_at = builder.add(b_at, builder.mul(pair, I64(CACHE_LINE_BYTES)))
                sums = add_pair(line_at, builder.add(a_at, builder.mul(pair, I64(4))), sums)
            return sums

        return repeat(builder, I64(_PAIRS // _UNROLL), sums, add_pairs)

    sums = start_sums(builder, start, places(start, start_stride), _SUMS)
    sums = repeat(builder, num_steps, sums, add_step)
    for value, address in zip(sums, places(out, out_stride), strict=True):
        builder.store(value, builder.inttoptr(address, _SUMS.as_pointer()), align=4)


def _prefetch(builder: Any, address: Any, num_lines: Any) -> None:
    """Prefetches four cache lines, or all of a step's if `num_lines` is more than four."""
    for part in range(0, 2 * _PAIRS, 4):
        for line in range(part, part + 4):
            prefetch_line(builder, builder.add(address, I64(CACHE_LINE_BYTES * line)), into_l2=True)
        if part == 0:
            more, done = builder.append_basic_block("more"), builder.append_basic_block("prefetched")
            builder.cbranch(builder.icmp_signed(">", num_lines, I64(4)), more, done)
            builder.position_at_end(more)
    builder.branch(done)
    builder.position_at_end(done)
