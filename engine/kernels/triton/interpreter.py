"""Triton's interpreter, which runs kernels on a CPU where TRITON_INTERPRET is set, made to round as a GPU does.

What Triton 3.6 leaves to mend, so that a kernel's results mean something without a GPU:
- numpy 2.4 makes no number of an array of one, which is what the interpreter's scalars are, so that no loop over a
  device's number runs (https://github.com/triton-lang/triton/issues/9171);
- float32 becomes bfloat16 by cutting bits off, and float8 e4m3 with a carry lost; a GPU rounds both to even;
- products of bfloat16 multiply its bits as if they were integers;
- a call of one kernel function by another, `tl.sum` and `tl.zeros` among them, looks through all of triton.language for
  what to replace, though that is replaced already: most of the time that a kernel took.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

# Decided by TRITON_INTERPRET when kernels are defined.
INTERPRETED = bool(triton.knobs.runtime.interpret)
_FP8_MAX = 448.0  # a GPU's conversion saturates there


def _mend() -> None:
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor
    convert = interpreter._convert_float
    builder = interpreter.InterpreterBuilder
    create_dot = builder.create_dot
    known_modules: set[str] = set()

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

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        # The kernel around this call has replaced `triton.language`; what a module besides sees is replaced for good.
        if self.fn.__module__ not in known_modules:
            interpreter._patch_lang(self.fn)
            known_modules.add(self.fn.__module__)
        return self.rewrite()(*arguments, **options)

    interpreter._patch_lang_tensor = patched_tensor
    interpreter.InterpretedFunction.__call__ = call
    interpreter._convert_float = rounded
    builder.create_dot = dot


if INTERPRETED:
    _mend()
