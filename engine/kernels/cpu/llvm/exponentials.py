"""Exponentials and roundings of whole rows, 16 lanes at a time, in LLVM's own language.

numba does not vectorize such loops, and an exponential then takes 15 cycles instead of one.

The intrinsics take addresses; counts are multiples of LANES, above 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from engine.kernels.cpu.llvm.instructions import F32, I32, I64, declared, fma_of, repeat, splat

LANES = 16
_VECTOR, _INTEGERS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
_BF16 = ir.VectorType(ir.IntType(16), LANES)
_MINUS_INFINITY = float("-inf")
_UNDERFLOW = -87.0
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
# Cephes' expf, as in `scalars.exp`.
_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [value] * LANES)


def _exp(builder: Any, x: Any) -> Any:
    """e**x for x <= 0 to about 1 ulp; 0 below _UNDERFLOW."""
    fma = fma_of(builder, LANES)
    floor = declared(builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.floor.v{LANES}f32")
    vanishes = builder.fcmp_ordered("<", x, _constant(_UNDERFLOW))
    x = builder.select(vanishes, _constant(_UNDERFLOW), x)
    n = builder.call(floor, [builder.call(fma, [x, _constant(_LOG2_E), _constant(0.5)])])
    r = builder.call(fma, [n, _constant(-_LN2_HIGH), x])
    r = builder.call(fma, [n, _constant(-_LN2_LOW), r])
    p = _constant(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        p = builder.call(fma, [p, r, _constant(coefficient)])
    p = builder.call(fma, [builder.fmul(p, r), r, builder.fadd(r, _constant(1.0))])
    exponent = builder.add(builder.fptosi(n, _INTEGERS), ir.Constant(_INTEGERS, [127] * LANES))
    power = builder.bitcast(builder.shl(exponent, ir.Constant(_INTEGERS, [23] * LANES)), _VECTOR)
    return builder.select(vanishes, _constant(0.0), builder.fmul(p, power))


def _load(builder: Any, base: Any, at: Any) -> Any:
    address = builder.add(base, builder.mul(at, I64(4)))
    return builder.load(builder.inttoptr(address, _VECTOR.as_pointer()), align=4)


def _store_bf16(builder: Any, value: Any, base: Any, at: Any) -> None:
    """Rounds to the nearest bfloat16. CPUs with AMX have AVX512_BF16 too."""
    kind = ir.FunctionType(_BF16, [_VECTOR])
    rounded = builder.call(declared(builder.module, kind, "llvm.x86.avx512bf16.cvtneps2bf16.512"), [value])
    address = builder.add(base, builder.mul(at, I64(2)))
    builder.store(rounded, builder.inttoptr(address, _BF16.as_pointer()), align=2)


def _loop(builder: Any, count: Any, start: Any, body: Callable[[Any, Any], Any]) -> Any:
    """`carried = body(at, carried)` for at = 0, LANES, ... below count, from `start` on; returns the last one."""

    def next_carried(index: Any, carried: list[Any]) -> list[Any]:
        return [body(builder.mul(index, I64(LANES)), carried[0])]

    return repeat(builder, builder.sdiv(count, I64(LANES)), [start], next_carried)[0]


def _reduce(builder: Any, name: str, *arguments: Any) -> Any:
    kind = ir.FunctionType(F32, [argument.type for argument in arguments])
    function = declared(builder.module, kind, f"llvm.vector.reduce.{name}.v{LANES}f32")
    return builder.call(function, arguments, fastmath=("reassoc",))


def _peak_of(typing_context: Any, line: Any, count: Any) -> Any:
    """The largest of `count` float32 at `line`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line, count = arguments

        def body(at: Any, peak: Any) -> Any:
            value = _load(builder, line, at)
            return builder.select(builder.fcmp_ordered(">", value, peak), value, peak)

        return _reduce(builder, "fmax", _loop(builder, count, _constant(_MINUS_INFINITY), body))

    return types.float32(types.int64, types.int64), generate


def _exp_row_of(typing_context: Any, line: Any, count: Any, peak: Any) -> Any:
    """Replaces `count` float32 at `line` by exp(x - peak) and returns their sum."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line, count, peak = arguments
        peaks = splat(builder, peak, LANES)

        def body(at: Any, total: Any) -> Any:
            weight = _exp(builder, builder.fsub(_load(builder, line, at), peaks))
            address = builder.add(line, builder.mul(at, I64(4)))
            builder.store(weight, builder.inttoptr(address, _VECTOR.as_pointer()), align=4)
            return builder.fadd(total, weight)

        return _reduce(builder, "fadd", F32(0.0), _loop(builder, count, _constant(0.0), body))

    return types.float32(types.int64, types.int64, types.float32), generate


def _exp_row_bf16_of(typing_context: Any, line: Any, count: Any, peak: Any, target: Any) -> Any:
    """`exp_row` with results stored as bfloat16 at `target`; the sum is that of the float32 values."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line, count, peak, target = arguments
        peaks = splat(builder, peak, LANES)

        def body(at: Any, total: Any) -> Any:
            weight = _exp(builder, builder.fsub(_load(builder, line, at), peaks))
            _store_bf16(builder, weight, target, at)
            return builder.fadd(total, weight)

        return _reduce(builder, "fadd", F32(0.0), _loop(builder, count, _constant(0.0), body))

    return types.float32(types.int64, types.int64, types.float32, types.int64), generate


def _scaled_row_bf16_of(typing_context: Any, line: Any, count: Any, factor: Any, target: Any) -> Any:
    """Stores `count` float32 at `line`, times a factor, as bfloat16 at `target`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line, count, factor, target = arguments
        factors = splat(builder, factor, LANES)

        def body(at: Any, nothing: Any) -> Any:
            _store_bf16(builder, builder.fmul(_load(builder, line, at), factors), target, at)
            return nothing

        _loop(builder, count, _constant(0.0), body)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64), generate


def _silu_times(builder: Any, arguments: Any) -> Any:
    """silu(gate) * partner, of the LANES float32 at each of two addresses."""
    gate, partner = (_load(builder, address, I64(0)) for address in arguments)
    is_positive = builder.fcmp_ordered(">=", gate, _constant(0.0))
    # The exponential is taken of -|x|, which overflows at neither end.
    small = _exp(builder, builder.select(is_positive, builder.fneg(gate), gate))
    sigmoid = builder.fdiv(
        builder.select(is_positive, _constant(1.0), small), builder.fadd(small, _constant(1.0))
    )
    return builder.fmul(builder.fmul(gate, sigmoid), partner)


def _silu_gated_of(typing_context: Any, gate: Any, partner: Any, target: Any) -> Any:
    """Stores silu(gate) * partner, of LANES float32 each, at `target`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _silu_times(builder, arguments[:2])
        builder.store(value, builder.inttoptr(arguments[2], _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _silu_gated_bf16_of(typing_context: Any, gate: Any, partner: Any, target: Any) -> Any:
    """`silu_gated` with results stored as bfloat16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _store_bf16(builder, _silu_times(builder, arguments[:2]), arguments[2], I64(0))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


peak_of: Any = intrinsic(_peak_of)
exp_row: Any = intrinsic(_exp_row_of)
exp_row_bf16: Any = intrinsic(_exp_row_bf16_of)
scaled_row_bf16: Any = intrinsic(_scaled_row_bf16_of)
silu_gated: Any = intrinsic(_silu_gated_of)
silu_gated_bf16: Any = intrinsic(_silu_gated_bf16_of)
