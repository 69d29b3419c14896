"""Register tiles, written in LLVM's own language: the inner loops of the compiled CPU kernels.

A tile is up to `TILE_ROWS` rows of float32 sums that stay in vector registers while a loop runs over what is summed.
numba alone does not keep them there. The intrinsics take addresses and strides in bytes.
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

# Two vector registers side by side, and as many rows as leave registers for the panel and a broadcast of x: 12 of 16
# registers hold sums (24 of 32 with AVX-512), and each value loaded is used by that many multiplications.
PANEL = 32 if HAS_512_BITS else 16
TILE_ROWS = 12 if HAS_512_BITS else 6

_UNROLL = 4
AHEAD_BITS = 8  # of the fraction in steps of the prefetch address

declared: Any = cgutils.get_or_insert_function

I64, I32, _I16, F32 = ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.FloatType()
_LANES = ir.VectorType(F32, PANEL)


def load_widened(builder: Any, address: Any, element_bytes: int, lanes: int) -> Any:
    """`lanes` elements at `address` as float32; those of two bytes are bfloat16, the upper half of a float32."""
    vector = ir.VectorType(F32, lanes)
    if element_bytes == 4:
        return builder.load(builder.inttoptr(address, vector.as_pointer()), align=4)
    whole = ir.VectorType(I32, lanes)
    halves = builder.load(builder.inttoptr(address, ir.VectorType(_I16, lanes).as_pointer()), align=2)
    return builder.bitcast(builder.shl(builder.zext(halves, whole), ir.Constant(whole, [16] * lanes)), vector)


def load_splat(builder: Any, address: Any, lanes: int) -> Any:
    """The float32 at `address` in every lane."""
    return splat(builder, builder.load(builder.inttoptr(address, F32.as_pointer()), align=4), lanes)


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """A value in every lane."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    index = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(builder.insert_element(nothing, value, I32(0)), nothing, index)


def fma_of(builder: Any, lanes: int) -> Any:
    vector = ir.VectorType(F32, lanes)
    return declared(builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f32")


def prefetch_line(builder: Any, address: Any, *, into_l2: bool = False) -> None:
    """Asks the CPU for the cache line at `address`, which need not exist."""
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    call = declared(builder.module, kind, "llvm.prefetch.p0")
    read, locality, data = I32(0), I32(2 if into_l2 else 3), I32(1)
    builder.call(call, [builder.inttoptr(address, pointer), read, locality, data])


def switch_rows(builder: Any, num_rows: Any, emit: Callable[[int], None], most: int) -> None:
    """`emit(rows)` for the number of rows there are, 1 to `most`."""
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
    """`values = body(index, values)` for index = 0 to count - 1, count above 0; returns the last ones."""
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
    """The vectors at these addresses, or zeros where `start` is 0."""
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
            line = load_widened(
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
    """One tile of `rows` rows (at most TILE_ROWS); addresses and strides in bytes. `start` is where the sums begin:
    0, or the address of rows `start_stride` apart. Each line of the panel also brings nearer the memory at `ahead`,
    which moves by `ahead_step` / 2**AHEAD_BITS. `element` is any weight, for its type."""
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
