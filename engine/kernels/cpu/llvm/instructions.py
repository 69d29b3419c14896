"""Pieces of LLVM code that several intrinsics are built of: loads, prefetches, loops over rows, loops that carry sums.

A builder is llvmlite's; addresses and strides are int64 values, in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import llvmlite.ir as ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

HAS_512_BITS = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
CACHE_LINE_BYTES = 64

I64, I32, _I16, F32 = ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.FloatType()

declared: Any = cgutils.get_or_insert_function


def load_float32(builder: Any, address: Any, element_bytes: int, lanes: int) -> Any:
    """Loads `lanes` elements as float32; elements of two bytes are bfloat16, the upper half of a float32."""
    vector = ir.VectorType(F32, lanes)
    if element_bytes == 4:
        return builder.load(builder.inttoptr(address, vector.as_pointer()), align=4)
    whole = ir.VectorType(I32, lanes)
    halves = builder.load(builder.inttoptr(address, ir.VectorType(_I16, lanes).as_pointer()), align=2)
    return builder.bitcast(builder.shl(builder.zext(halves, whole), ir.Constant(whole, [16] * lanes)), vector)


def load_splat(builder: Any, address: Any, lanes: int) -> Any:
    """Loads the float32 at `address` into every lane."""
    return splat(builder, builder.load(builder.inttoptr(address, F32.as_pointer()), align=4), lanes)


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """Copies a value to every lane."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    index = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(builder.insert_element(nothing, value, I32(0)), nothing, index)


def fma_of(builder: Any, lanes: int) -> Any:
    """The fused multiply-add of three vectors of `lanes` float32."""
    vector = ir.VectorType(F32, lanes)
    return declared(builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f32")


def prefetch_line(builder: Any, address: Any, *, into_l2: bool = False) -> None:
    """Prefetches the cache line at `address`, which need not exist."""
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    call = declared(builder.module, kind, "llvm.prefetch.p0")
    read, locality, data = I32(0), I32(2 if into_l2 else 3), I32(1)
    builder.call(call, [builder.inttoptr(address, pointer), read, locality, data])


def switch_rows(builder: Any, num_rows: Any, emit: Callable[[int], None], most: int) -> None:
    """Emits a switch over `num_rows`, 1 to `most`, with the code of `emit(rows)` in each case."""
    done = builder.append_basic_block("done")
    switch = builder.switch(num_rows, done)
    for rows in range(1, most + 1):
        block = builder.append_basic_block(f"rows{rows}")
        switch.add_case(I64(rows), block)
        builder.position_at_end(block)
        emit(rows)
        builder.branch(done)
    builder.position_at_end(done)


def repeat(
    builder: Any, count: Any, values: Sequence[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Emits `values = body(index, values)` for index = 0 to count - 1, count above 0; returns the last values."""
    before, head = builder.block, builder.append_basic_block("head")
    builder.branch(head)
    builder.position_at_end(head)
    index, *carried = (builder.phi(value.type) for value in (I64(0), *values))
    results = [None, *body(index, carried)]
    results[0] = following = builder.add(index, I64(1))
    for phi, first, result in zip((index, *carried), (I64(0), *values), results, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(result, builder.block)
    after = builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed("<", following, count), head, after)
    builder.position_at_end(after)
    return results[1:]


def start_sums(builder: Any, start: Any, addresses: Sequence[Any], vector: Any) -> list[Any]:
    """Loads the vectors at these addresses, or zeros if `start` is 0."""
    entry = builder.block
    load, ready = builder.append_basic_block("load"), builder.append_basic_block("ready")
    builder.cbranch(builder.icmp_unsigned("!=", start, I64(0)), load, ready)
    builder.position_at_end(load)
    loaded = [builder.load(builder.inttoptr(address, vector.as_pointer()), align=4) for address in addresses]
    builder.branch(ready)
    builder.position_at_end(ready)
    sums = []
    for value in loaded:
        total = builder.phi(vector)
        total.add_incoming(ir.Constant(vector, [0.0] * vector.count), entry)
        total.add_incoming(value, load)
        sums.append(total)
    return sums


def _prefetch_of(typing_context: Any, address: Any) -> Any:
    """Prefetches the cache line at `address` (int64)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        prefetch_line(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


prefetch: Any = intrinsic(_prefetch_of)
