"""Register tiles over K and V that lie in slots (see `cpu_tiles`): the two inner loops of `cpu_single`."""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from engine.kernels.cpu_tiles import (
    F32,
    I32,
    I64,
    TILE_ROWS,
    fma_of,
    load_splat,
    load_widened,
    prefetch_line,
)

# A cache line of bfloat16 is two of these; head sizes are multiples of it (others take the plain loops).
LANES = 16
_VECTOR = ir.VectorType(F32, LANES)


def _switch_rows(builder: Any, num_rows: Any, emit: Any) -> None:
    """`emit(rows)` for the number of rows there are, 1 to TILE_ROWS."""
    done = builder.append_basic_block("done")
    switch = builder.switch(num_rows, done)
    for rows in range(1, TILE_ROWS + 1):
        block = builder.append_basic_block(f"rows{rows}")
        switch.add_case(I64(rows), block)
        builder.position_at_end(block)
        emit(rows)
        builder.branch(done)
    builder.position_at_end(done)


def _sum_of_lanes(builder: Any, value: Any) -> Any:
    """Halves are added until one lane is left."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        halves = [
            builder.shuffle_vector(
                value, value, ir.Constant(ir.VectorType(I32, lanes), list(range(at, at + lanes)))
            )
            for at in (0, lanes)
        ]
        value = builder.fadd(*halves)
    return builder.extract_element(value, I32(0))


def _emit_dots(builder: Any, arguments: Any, rows: int, element_bytes: int) -> None:
    q, q_stride, line, size, out, out_stride = arguments
    fma = fma_of(builder, LANES)
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    before = builder.block
    body, after = builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.branch(body)
    builder.position_at_end(body)
    d = builder.phi(I64)
    d.add_incoming(I64(0), before)
    sums = [builder.phi(_VECTOR) for _ in range(rows)]
    key = load_widened(builder, builder.add(line, builder.mul(d, I64(element_bytes))), element_bytes, LANES)
    for i, total in enumerate(sums):
        at = builder.add(builder.add(q, builder.mul(q_stride, I64(i))), builder.mul(d, I64(4)))
        query = builder.load(builder.inttoptr(at, _VECTOR.as_pointer()), align=4)
        total.add_incoming(zero, before)
        total.add_incoming(builder.call(fma, [query, key, total]), body)
    following = builder.add(d, I64(LANES))
    d.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", following, size), body, after)
    builder.position_at_end(after)
    for i, total in enumerate(sums):
        value = _sum_of_lanes(builder, total.incomings[1][0])
        at = builder.add(out, builder.mul(out_stride, I64(i)))
        builder.store(value, builder.inttoptr(at, F32.as_pointer()), align=4)


def _dots_of(
    typing_context: Any,
    rows: Any,
    q: Any,
    q_stride: Any,
    line: Any,
    element: Any,
    size: Any,
    out: Any,
    out_stride: Any,
) -> Any:
    """out[i] = q[i, :size] . line[:size] for i < rows (at most TILE_ROWS); size a multiple of LANES, above 0."""
    element_bytes = element.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = [*arguments[1:4], *arguments[5:]]
        _switch_rows(builder, arguments[0], lambda rows: _emit_dots(builder, numbers, rows, element_bytes))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64, element, i64, i64, i64), generate


dots: Any = intrinsic(_dots_of)


def _emit_gather(builder: Any, arguments: Any, rows: int, element_bytes: int) -> None:
    weights, weights_stride, cache, slots, slot_stride, count, remaining, out, out_stride, distance = (
        arguments
    )
    fma = fma_of(builder, LANES)
    targets = [
        builder.inttoptr(builder.add(out, builder.mul(out_stride, I64(i))), _VECTOR.as_pointer())
        for i in range(rows)
    ]

    def line_of(j: Any) -> Any:
        at = builder.inttoptr(builder.add(slots, builder.mul(j, I64(4))), I32.as_pointer())
        return builder.add(cache, builder.mul(builder.sext(builder.load(at, align=4), I64), slot_stride))

    starts = [builder.load(target, align=4) for target in targets]
    last = builder.sub(remaining, I64(1))
    before = builder.block
    body, after = builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.branch(body)
    builder.position_at_end(body)
    j = builder.phi(I64)
    j.add_incoming(I64(0), before)
    sums = [builder.phi(_VECTOR) for _ in range(rows)]
    ahead = builder.add(j, distance)
    ahead = builder.select(builder.icmp_signed("<", ahead, last), ahead, last)
    prefetch_line(builder, line_of(ahead))
    value = load_widened(builder, line_of(j), element_bytes, LANES)
    for i, total in enumerate(sums):
        at = builder.add(builder.add(weights, builder.mul(weights_stride, I64(i))), builder.mul(j, I64(4)))
        total.add_incoming(starts[i], before)
        total.add_incoming(builder.call(fma, [load_splat(builder, at, LANES), value, total]), body)
    following = builder.add(j, I64(1))
    j.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", following, count), body, after)
    builder.position_at_end(after)
    for total, target in zip(sums, targets, strict=True):
        builder.store(total.incomings[1][0], target, align=4)


def _gather_of(
    typing_context: Any,
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
    """out[i, :LANES] += sum over j < count of weights[i, j] * cache[slots[j], :LANES] for i < rows (at most TILE_ROWS);
    count above 0, slots int32. The line `distance` slots on is asked for meanwhile, up to the last of `remaining`."""
    element_bytes = element.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = [*arguments[1:4], *arguments[5:]]
        _switch_rows(builder, arguments[0], lambda rows: _emit_gather(builder, numbers, rows, element_bytes))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64, element, i64, i64, i64, i64, i64, i64, i64), generate


gather: Any = intrinsic(_gather_of)
