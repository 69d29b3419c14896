"""Fixes of Triton's interpreter, which runs kernels on a CPU if TRITON_INTERPRET is set.

Without them, Triton 3.6 would not compute there what a GPU does:
- numpy 2.4 does not convert an array of one element to a number. The interpreter's scalars are such arrays, so loops
  over a number read on the device do not run (https://github.com/triton-lang/triton/issues/9171);
- float32 is truncated to bfloat16, and a carry is lost in the conversion to float8 e4m3; a GPU rounds both to even;
- products of bfloat16 multiply its bits as if they were integers;
- at each launch, and when one kernel function calls another, such as `tl.sum` or `tl.zeros`, the interpreter searches
  triton.language for functions to replace, and after a launch it restores them. This took most of a kernel's time. They
  stay replaced now: where kernels are interpreted, nothing compiles any;
- sums and products of integers are computed a second time, in 64 bits, for an assertion that is off by default, and
  each value looks up its dtype in a table that is made for it. This took half of the rest.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

# TRITON_INTERPRET decides this when kernels are defined.
INTERPRETED = bool(triton.knobs.runtime.interpret)
_FP8_MAX = 448.0  # a GPU's conversion saturates there


def _fix() -> None:
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor
    convert = interpreter._convert_float
    builder = interpreter.InterpreterBuilder
    create_dot = builder.create_dot
    patch_language = interpreter._patch_lang
    known_modules: set[str] = set()

    def patched_once(function: Any) -> Any:
        # What is replaced depends on the names that the function's module sees.
        if function.__module__ not in known_modules:
            patch_language(function)
            known_modules.add(function.__module__)
        return interpreter._LangPatchScope()  # which has nothing to restore

    def patched_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def rounded(data: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        if source != tl.float32 or target not in (tl.bfloat16, tl.float8e4nv):
            return convert(data, source, target, rounding_mode)
        values = torch.from_numpy(np.ascontiguousarray(data).view(np.float32).copy())
        if target == tl.bfloat16:
            return values.bfloat16().view(torch.uint16).numpy()
        return values.clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    def dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        def wide(handle: Any) -> Any:
            is_bfloat16 = handle.dtype.scalar == tl.bfloat16
            return self.cast_impl(handle, tl.float32) if is_bfloat16 else handle

        return create_dot(self, wide(a), wide(b), *others)

    dtype_of_scalar = functools.cache(interpreter._get_np_dtype)

    def dtype_of(dtype: Any) -> Any:
        scalar = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        return np.dtype(np.uint64) if isinstance(scalar, tl.pointer_type) else dtype_of_scalar(scalar)

    interpreter._get_np_dtype = dtype_of
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter._patch_lang_tensor = patched_tensor
    interpreter._patch_lang = patched_once
    interpreter._convert_float = rounded
    builder.create_dot = dot


if INTERPRETED:
    _fix()
