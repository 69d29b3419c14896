"""The two inner loops of `decode_attention`: scores from keys, and weighted sums of values, that lie in slots.

Written in LLVM's own language, so that sums stay in vector registers (see `register_tiles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.ir as ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from engine.kernels.cpu.llvm.instructions import (
    CACHE_LINE_BYTES,
    F32,
    HAS_512_BITS,
    I32,
    I64,
    fma_of,
    load_float32,
    load_splat,
    prefetch_line,
    repeat,
    switch_rows,
)

# Elements of a vector; a cache line of bfloat16 is two vectors. Head sizes must be multiples of it (others take the
# plain loops).
LANES = 16
_VECTOR = ir.VectorType(F32, LANES)
# `weighted_sum` keeps the sums of this many vectors of up to SUM_ROWS rows: 24 of the 32 registers of AVX-512, so that
# each slot and weight is loaded once for all of them. With AVX2, whose 16 registers are half as wide, 12 hold the sums
# of one vector.
SUM_VECTORS, SUM_ROWS = 4 if HAS_512_BITS else 1, 6
# `dots` takes this many keys, and as many queries as have room for their sums in the registers beside the keys.
DOT_KEYS, DOT_ROWS = 4, 6 if HAS_512_BITS else 1


def _sums_of_lanes(builder: Any, values: Sequence[Any]) -> Any:
    """[DOT_KEYS] the sum of each value's lanes. Halves are added, two values at a time, until each value has only
    LANES / DOT_KEYS lanes of one vector left; then neighboring lanes are added."""

    def shuffled(first: Any, second: Any, lanes: list[int]) -> Any:
        return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    parts, width = list(values), LANES  # each value has `width` lanes of a part, side by side with others
    while len(parts) > 1:
        halves = [
            [
                lane
                for start in range(0, 2 * LANES, width)
                for lane in range(start + at, start + at + width // 2)
            ]
            for at in (0, width // 2)
        ]
        parts = [
            builder.fadd(*(shuffled(first, second, half) for half in halves))
            for first, second in zip(parts[::2], parts[1::2], strict=True)
        ]
        width //= 2
    total = parts[0]
    while width > 1:
        lanes = len(values) * width
        total = builder.fadd(
            *(shuffled(total, total, list(range(at, lanes, 2))) for at in (0, 1)),
        )
        width //= 2
    return total


def _emit_dots(builder: Any, arguments: Any, rows: int, element_bytes: int) -> None:
    q, q_stride, size, out, out_stride, *lines = arguments
    fma = fma_of(builder, LANES)

    def add_lanes(part: Any, sums: list[Any]) -> list[Any]:
        d = builder.mul(part, I64(LANES))
        offset = builder.mul(d, I64(element_bytes))
        keys = [load_float32(builder, builder.add(line, offset), element_bytes, LANES) for line in lines]
        added = []
        for i in range(rows):
            at = builder.add(builder.add(q, builder.mul(q_stride, I64(i))), builder.mul(d, I64(4)))
            query = builder.load(builder.inttoptr(at, _VECTOR.as_pointer()), align=4)
            totals = sums[i * len(keys) : (i + 1) * len(keys)]
            added += [builder.call(fma, [query, key, total]) for key, total in zip(keys, totals, strict=True)]
        return added

    zeros = [ir.Constant(_VECTOR, [0.0] * LANES)] * (rows * len(lines))
    sums = repeat(builder, builder.sdiv(size, I64(LANES)), zeros, add_lanes)
    for i in range(rows):
        value = _sums_of_lanes(builder, sums[i * len(lines) : (i + 1) * len(lines)])
        at = builder.add(out, builder.mul(out_stride, I64(i)))
        builder.store(value, builder.inttoptr(at, value.type.as_pointer()), align=4)


def _dots_of(
    typing_context: Any,
    rows: Any,
    q: Any,
    q_stride: Any,
    element: Any,
    size: Any,
    out: Any,
    out_stride: Any,
    line_0: Any,
    line_1: Any,
    line_2: Any,
    line_3: Any,
) -> Any:
    """out[i, k] = q[i, :size] . line_k[:size] for i < rows (at most DOT_ROWS), k < DOT_KEYS; size a multiple of LANES,
    above 0. `element` is any element of a line, for its type. Summing the lanes of four keys together costs a third of
    summing them one by one."""
    element_bytes = element.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = [*arguments[1:3], *arguments[4:]]
        switch_rows(
            builder, arguments[0], lambda rows: _emit_dots(builder, numbers, rows, element_bytes), DOT_ROWS
        )
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, element, i64, i64, i64, i64, i64, i64, i64), generate


dots: Any = intrinsic(_dots_of)


def _emit_weighted_sum(builder: Any, arguments: Any, rows: int, element_bytes: int, vectors: int) -> None:
    weights, weights_stride, cache, slots, slot_stride, count, remaining, out, out_stride, distance = (
        arguments
    )
    fma = fma_of(builder, LANES)
    targets = [
        builder.inttoptr(
            builder.add(builder.add(out, builder.mul(out_stride, I64(i))), I64(4 * LANES * v)),
            _VECTOR.as_pointer(),
        )
        for i in range(rows)
        for v in range(vectors)
    ]

    def line_of(j: Any) -> Any:
        at = builder.inttoptr(builder.add(slots, builder.mul(j, I64(4))), I32.as_pointer())
        return builder.add(cache, builder.mul(builder.sext(builder.load(at, align=4), I64), slot_stride))

    last = builder.sub(remaining, I64(1))
    vector_bytes = LANES * element_bytes

    def add_slot(j: Any, sums: list[Any]) -> list[Any]:
        ahead = builder.add(j, distance)
        ahead = builder.select(builder.icmp_signed("<", ahead, last), ahead, last)
        ahead_line, line = line_of(ahead), line_of(j)
        for offset in range(0, vectors * vector_bytes, CACHE_LINE_BYTES):
            prefetch_line(builder, builder.add(ahead_line, I64(offset)))
        values = [
            load_float32(builder, builder.add(line, I64(v * vector_bytes)), element_bytes, LANES)
            for v in range(vectors)
        ]
        added = []
        for i in range(rows):
            at = builder.add(
                builder.add(weights, builder.mul(weights_stride, I64(i))), builder.mul(j, I64(4))
            )
            weight = load_splat(builder, at, LANES)
            totals = sums[i * vectors : (i + 1) * vectors]
            added += [
                builder.call(fma, [weight, value, total]) for value, total in zip(values, totals, strict=True)
            ]
        return added

    sums = repeat(builder, count, [builder.load(target, align=4) for target in targets], add_slot)
    for total, target in zip(sums, targets, strict=True):
        builder.store(total, target, align=4)


def _weighted_sum_of(
    typing_context: Any,
    is_wide: Any,
    rows: Any,
    weights: Any,
    weights_stride: Any,
    cache: Any,
    element: Any,
    slots: Any,
    slot_stride: Any,
    count: Any,
    remaining: Any,
    out: Any,
    out_stride: Any,
    distance: Any,
) -> Any:
    """out[i, :n] += sum over j < count of weights[i, j] * cache[slots[j], :n] for i < rows (at most SUM_ROWS), where n
    is LANES, or with `is_wide` SUM_VECTORS times LANES; count above 0, slots int32. `element` is any element of the
    cache, for its type. The line `distance` slots ahead is prefetched, up to the last of `remaining` slots."""
    element_bytes = element.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = [*arguments[2:5], *arguments[6:]]
        one, wide, done = (builder.append_basic_block(name) for name in ("one", "wide", "summed"))
        builder.cbranch(arguments[0], wide, one)
        for block, vectors in ((one, 1), (wide, SUM_VECTORS)):
            builder.position_at_end(block)

            def emit(rows: int, vectors: int = vectors) -> None:
                _emit_weighted_sum(builder, numbers, rows, element_bytes, vectors)

            switch_rows(builder, arguments[1], emit, SUM_ROWS)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(types.boolean, i64, i64, i64, i64, element, i64, i64, i64, i64, i64, i64, i64), generate


weighted_sum: Any = intrinsic(_weighted_sum_of)
