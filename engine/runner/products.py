"""The matrix products of a decoder whose layers run as our own kernels, with weights packed once, at load.

Activations are float32, and sums too. Where a CPU has products of bfloat16, models in it compute those, at twice to
eight times the rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.kernels.cpu import plain

Array = npt.NDArray[Any]
_NO_BIAS = np.empty(0, dtype=np.float32)


class Workspace:
    """Arrays that live from step to step: memory that a step touches anew costs page faults. Kernels that compute
    `cpu_narrow.ROWS` rows at a time may read and write rows that are not asked for."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def take(self, name: str, num_rows: int, width: int, dtype: npt.DTypeLike = np.float32) -> Array:
        """[num_rows, width] of any content."""
        array = self._arrays.get(name)
        if array is None or len(array) < num_rows or array.shape[1] != width:
            from engine.kernels import cpu_narrow

            num_padded = -(-num_rows // cpu_narrow.ROWS) * cpu_narrow.ROWS
            memory = cpu_narrow.aligned(num_padded * width * np.dtype(dtype).itemsize)
            array = self._arrays[name] = memory.view(dtype).reshape(num_padded, width)
        return array[:num_rows]


class Weights:
    """One or more weights [N, K] over the same input [T, K], of memory that a `Workspace` gave."""

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        bias: torch.Tensor | None,
        workspace: Workspace,
        *,
        is_narrow: bool,
        is_gate: bool = False,
    ) -> None:
        """`is_narrow`: the input is bfloat16, as the weights are; K must be a multiple of `cpu_narrow.STEP`. `is_gate`:
        two weights, for `gated`; otherwise they are one above the other, for `store` and `add`."""
        from engine.kernels import cpu_linear, cpu_narrow, cpu_narrow_linear

        kernels = cpu_narrow_linear if is_narrow else cpu_linear
        arrays = [plain(weight.detach().contiguous()) for weight in weights]
        panels = kernels.interleave(*arrays) if is_gate else kernels.pack(np.concatenate(arrays))
        self._linear = kernels.linear
        self._store, self._add, self._gated = cpu_linear.STORE, cpu_linear.ADD, cpu_linear.GATED
        self._packed = (panels, cpu_narrow.multiplier()) if is_narrow else (panels,)
        self._width = panels.shape[0] * kernels.PANEL // (2 if is_gate else 1)
        self._workspace = workspace
        self._gated_dtype = np.uint16 if is_narrow else np.float32
        self._bias = _NO_BIAS
        if bias is not None:
            self._bias = np.zeros(self._width, dtype=np.float32)
            self._bias[: len(bias)] = bias.detach().float().numpy()

    def store(self, x: Array) -> Array:
        """[T, >= N] float32: x @ weight.T + bias, overwritten by the next call of any."""
        out = self._workspace.take(f"store {self._width}", len(x), self._width)
        self._run(x, self._store, out)
        return out

    def add(self, x: Array, total: Array) -> None:
        """total [T, >= N] float32 += x @ weight.T"""
        self._run(x, self._add, total)

    def gated(self, x: Array) -> Array:
        """[T, >= N] silu(x @ first.T) * (x @ second.T), of two weights, in x's dtype; overwritten like `store`'s."""
        out = self._workspace.take("gated", len(x), self._width, self._gated_dtype)
        self._run(x, self._gated, out)
        return out

    def _run(self, x: Array, mode: int, out: Array) -> None:
        self._linear(x, *self._packed, self._bias, mode, torch.get_num_threads(), out)
