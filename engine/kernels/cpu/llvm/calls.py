"""Calls of compiled functions by their addresses.

A function that is called by its name is compiled once more with each function that calls it, and the body of a `prange`
loop three times. Called by its address, it is compiled once. The inner loops take seconds each.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

_unpacked: Any = cgutils.unpack_tuple
_if_unlikely: Any = cgutils.if_unlikely


def address_of(function: Any, *kinds: Any) -> int:
    """The address of a compiled function that takes arguments of these numba types and returns nothing. It is compiled
    now, unless it is on disk."""
    function.compile(kinds)
    compiled = function.overloads[kinds]
    address: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return address


def caller_of(function: Any) -> Any:
    """For compiled functions: `call(address, arguments)` calls `function`, whose address for arguments of these types
    `address_of` has returned."""

    def call_of(typing_context: Any, address: Any, arguments: Any) -> Any:
        kinds = tuple(map(types.unliteral, arguments.types))
        if kinds not in function.overloads:
            raise TypingError(f"`address_of` must come first for {function.__name__}{kinds}")

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            convention = context.call_conv
            pointer = convention.get_function_type(types.none, kinds).as_pointer()
            status, _ = convention.call_function(
                builder,
                builder.inttoptr(values[0], pointer),
                types.none,
                kinds,
                _unpacked(builder, values[1]),
            )
            with _if_unlikely(builder, status.is_error):
                convention.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return types.void(types.int64, arguments), generate

    return intrinsic(call_of)
