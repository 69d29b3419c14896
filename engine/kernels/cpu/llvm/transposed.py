"""Gathers rows by slot and transposes them in vector registers, in LLVM's own language.

numba writes element by element, which takes eight times as long: a gathered row then goes to as many cache lines as it
has elements.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from engine.kernels.cpu.llvm.instructions import F32, I32, I64, load_float32, repeat

ROWS = 16  # that one call transposes, and as many columns at a time

_VECTOR = ir.VectorType(F32, ROWS)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of ROWS vectors. Each stage exchanges one bit of the row's number with that bit of the lane's."""
    rows = list(rows)
    for step in (8, 4, 2, 1):
        low = [ROWS + lane - step if lane & step else lane for lane in range(ROWS)]
        high = [ROWS + lane if lane & step else lane + step for lane in range(ROWS)]
        for i in range(ROWS):
            if not i & step:
                one, other = rows[i], rows[i + step]
                rows[i], rows[i + step] = (
                    builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(I32, ROWS), mask))
                    for mask in (low, high)
                )
    return rows


def _gather_transposed_of(
    typing_context: Any,
    slots: Any,
    count: Any,
    base: Any,
    slot_stride: Any,
    element: Any,
    num_columns: Any,
    out: Any,
    out_stride: Any,
) -> Any:
    """out[c, i] = the element c at slot number i, as float32, for i < ROWS and c < num_columns, a multiple of ROWS.
    From `count` (1 to ROWS) on, the slot is that of number count - 1. `slots` is the address of int32 numbers, `base`
    that of slot 0, `element` is any element, for its type."""
    element_bytes = element.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        slots, count, base, slot_stride, _, num_columns, out, out_stride = arguments
        last = builder.sub(count, I64(1))
        addresses = []
        for i in range(ROWS):
            number = builder.select(builder.icmp_signed("<", I64(i), count), I64(i), last)
            pointer = builder.inttoptr(builder.add(slots, builder.mul(number, I64(4))), I32.as_pointer())
            slot = builder.sext(builder.load(pointer, align=4), I64)
            addresses.append(builder.add(base, builder.mul(slot, slot_stride)))

        def block(index: Any, _: list[Any]) -> list[Any]:
            column = builder.mul(index, I64(ROWS))
            offset = builder.mul(column, I64(element_bytes))
            rows = [
                load_float32(builder, builder.add(address, offset), element_bytes, ROWS)
                for address in addresses
            ]
            for c, vector in enumerate(_transposed(builder, rows)):
                to = builder.add(out, builder.mul(builder.add(column, I64(c)), out_stride))
                builder.store(vector, builder.inttoptr(to, _VECTOR.as_pointer()), align=4)
            return []

        repeat(builder, builder.sdiv(num_columns, I64(ROWS)), [], block)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64, element, i64, i64, i64), generate


gather_transposed: Any = intrinsic(_gather_transposed_of)
