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

from engine.kernels.cpu.attention import plain

Array = npt.NDArray[Any]
Packed = tuple[Any, ...]  # weights as `cpu_decoder.product` takes them


class Workspace:
    """Arrays that live from step to step: memory that a step touches anew costs page faults. Kernels that compute
    `cpu_narrow.ROWS` rows at a time may read and write rows that are not asked for."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def take(self, name: str, num_rows: int, width: int, dtype: npt.DTypeLike = np.float32) -> Array:
        """[num_rows, width] of any content."""
        array = self._arrays.get(name)
        if array is None or len(array) < num_rows or array.shape[1] != width:
            from engine.kernels.cpu import multiply_bf16 as cpu_narrow

            num_padded = -(-num_rows // cpu_narrow.ROWS) * cpu_narrow.ROWS
            memory = cpu_narrow.aligned(num_padded * width * np.dtype(dtype).itemsize)
            array = self._arrays[name] = memory.view(dtype).reshape(num_padded, width)
        return array[:num_rows]


class Weights:
    """One or more weights [N, K] over the same input, packed."""

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        bias: torch.Tensor | None,
        *,
        is_narrow: bool,
        is_gate: bool = False,
    ) -> None:
        """`is_narrow`: the input is bfloat16, as the weights are; K must be a multiple of `cpu_narrow.STEP`. `is_gate`:
        a gate and its partner; otherwise the weights are one above the other."""
        from engine.kernels.cpu import linear as cpu_linear
        from engine.kernels.cpu import linear_bf16 as cpu_narrow_linear
        from engine.kernels.cpu import multiply_bf16 as cpu_narrow

        kernels = cpu_narrow_linear if is_narrow else cpu_linear
        arrays = [plain(weight.detach().contiguous()) for weight in weights]
        panels = kernels.interleave(*arrays) if is_gate else kernels.pack(np.concatenate(arrays))
        self.width = panels.shape[0] * kernels.PANEL // (2 if is_gate else 1)  # columns that a product has
        bias_or_none = np.zeros(0 if bias is None else self.width, dtype=np.float32)
        if bias is not None:
            bias_or_none[: len(bias)] = bias.detach().float().numpy()
        self.packed: Packed = (panels, bias_or_none, *([cpu_narrow.multiplier()] if is_narrow else []))
