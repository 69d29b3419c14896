"""Linear layers of the CPU decoder: their weights, packed once at load, and the buffers that steps compute in.

Activations and sums are float32. On a CPU with bfloat16 products, bfloat16 models use those, at two to eight times the
rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import from_dtype

from engine.kernels.cpu import linear, linear_bf16, multiply_bf16
from engine.kernels.cpu.attention import numpy_view

Array = npt.NDArray[Any]
Packed = tuple[Any, ...]  # weights in the form that `engine.kernels.cpu.decoder` takes


class Workspace:
    """Arrays that are kept from step to step, since memory that a step touches for the first time costs page faults.

    Each has room for a multiple of `multiply_bf16.ROWS` rows: kernels that compute that many rows at a time may read
    and write rows beyond those that were requested.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def take(self, name: str, num_rows: int, width: int, dtype: npt.DTypeLike = np.float32) -> Array:
        """Returns the array `name` [num_rows, width], with arbitrary contents."""
        array = self._arrays.get(name)
        if array is None or len(array) < num_rows or array.shape[1] != width:
            num_padded = -(-num_rows // multiply_bf16.ROWS) * multiply_bf16.ROWS
            memory = multiply_bf16.aligned(num_padded * width * np.dtype(dtype).itemsize)
            array = self._arrays[name] = memory.view(dtype).reshape(num_padded, width)
        return array[:num_rows]


class PackedWeights:
    """The packed weights [N, K] of one or more linear layers that share their input."""

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        bias: torch.Tensor | None,
        *,
        is_bf16: bool,
        is_gate: bool = False,
    ) -> None:
        """Stacks the weights, or interleaves them if they are a gate and its partner (`is_gate`).

        `is_bf16`: the weights and the input are bfloat16; K must be a multiple of `multiply_bf16.STEP`.
        """
        kernels = linear_bf16 if is_bf16 else linear
        arrays = [numpy_view(weight.detach().contiguous()) for weight in weights]
        panels = kernels.interleave(*arrays) if is_gate else kernels.pack(np.concatenate(arrays))
        self.width = panels.shape[0] * kernels.PANEL // (2 if is_gate else 1)  # columns of the output
        bias_or_none = np.zeros(0 if bias is None else self.width, dtype=np.float32)
        if bias is not None:
            bias_or_none[: len(bias)] = bias.detach().float().numpy()
        multiplier = multiply_bf16.multiplier() if is_bf16 else None
        code = (
            linear_bf16.code_of_parts(multiplier)
            if is_bf16
            else linear.code_of_parts(from_dtype(panels.dtype))
        )
        self.packed: Packed = (code, panels, bias_or_none, multiplier)
