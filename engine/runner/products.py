"""The matrix products of a decoder whose layers run as our own kernels, with weights packed once, at load.

`PanelWeights` is the rule: float32 sums by our kernel, which beats oneDNN and MKL at every number of rows where a CPU
has AVX2. bfloat16 has `TileWeights` where a CPU multiplies tiles of it (AMX), and `OneDnnWeights` where it multiplies
vectors of it (AVX512_BF16), at twice the rate of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from engine.kernels.cpu import plain

Array = npt.NDArray[Any]
_NO_BIAS = np.empty(0, dtype=np.float32)


class Weights(Protocol):
    """One or more weights [N, K] over the same input `x` [T, K], of memory that a `Workspace` gave."""

    def store(self, x: Array) -> Array:
        """[T, >= N] x @ weight.T + bias, float32 or bfloat16 as uint16; overwritten by the next call of any."""

    def add(self, x: Array, total: Array) -> None:
        """total [T, >= N] float32 += x @ weight.T"""

    def gated(self, x: Array) -> Array:
        """[T, >= N] silu(x @ first.T) * (x @ second.T), of two weights; overwritten like `store`'s."""


class Workspace:
    """Arrays that live from step to step: memory that a step touches anew costs page faults. Kernels that compute
    `cpu_amx.ROWS` rows at a time may read and write rows that are not asked for."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def take(self, name: str, num_rows: int, width: int, dtype: npt.DTypeLike = np.float32) -> Array:
        """[num_rows, width] of any content."""
        array = self._arrays.get(name)
        if array is None or len(array) < num_rows or array.shape[1] != width:
            from engine.kernels import cpu_amx

            num_padded = -(-num_rows // cpu_amx.ROWS) * cpu_amx.ROWS
            memory = cpu_amx.aligned(num_padded * width * np.dtype(dtype).itemsize)
            array = self._arrays[name] = memory.view(dtype).reshape(num_padded, width)
        return array[:num_rows]


class PanelWeights:
    """Float32 in and out, whatever the weights' dtype."""

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        bias: torch.Tensor | None,
        workspace: Workspace,
        *,
        is_gate: bool = False,
    ) -> None:
        """`is_gate`: two weights, for `gated`; otherwise they are one above the other, for `store` and `add`."""
        from engine.kernels import cpu_linear, cpu_tiles

        self._linear = cpu_linear
        self._workspace = workspace
        arrays = [plain(weight.detach().contiguous()) for weight in weights]
        self._panels = cpu_linear.interleave(*arrays) if is_gate else cpu_linear.pack(np.concatenate(arrays))
        self._width = self._panels.shape[0] * cpu_tiles.PANEL // (2 if is_gate else 1)
        self._bias = _NO_BIAS
        if bias is not None:
            self._bias = np.zeros(self._width, dtype=np.float32)
            self._bias[: len(bias)] = bias.detach().float().numpy()

    def store(self, x: Array) -> Array:
        out = self._workspace.take(f"store {self._width}", len(x), self._width)
        self._run(x, self._linear.STORE, out)
        return out

    def add(self, x: Array, total: Array) -> None:
        self._run(x, self._linear.ADD, total)

    def gated(self, x: Array) -> Array:
        out = self._workspace.take("gated", len(x), self._width)
        self._run(x, self._linear.GATED, out)
        return out

    def _run(self, x: Array, mode: int, out: Array) -> None:
        self._linear.linear(x, self._panels, self._bias, mode, torch.get_num_threads(), out)


class TileWeights:
    """Bfloat16 in, float32 out, but for `gated`: its bfloat16 is the next product's input."""

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        bias: torch.Tensor | None,
        workspace: Workspace,
        *,
        is_gate: bool = False,
    ) -> None:
        """Like `PanelWeights`. K must be a multiple of `cpu_amx.STEP`."""
        from engine.kernels import cpu_amx, cpu_amx_linear

        self._linear = cpu_amx_linear
        self._config = cpu_amx.CONFIG
        self._workspace = workspace
        arrays = [plain(weight.detach().contiguous()) for weight in weights]
        pack = cpu_amx_linear.pack
        self._panels = cpu_amx_linear.interleave(*arrays) if is_gate else pack(np.concatenate(arrays))
        self._width = self._panels.shape[0] * cpu_amx.COLUMNS // (2 if is_gate else 1)
        self._bias = None if bias is None else bias.detach().float().numpy()

    def store(self, x: Array) -> Array:
        out = self._workspace.take(f"store {self._width}", len(x), self._width)
        self._run(x, self._linear.STORE, out)
        if self._bias is not None:
            out[:, : len(self._bias)] += self._bias
        return out

    def add(self, x: Array, total: Array) -> None:
        self._run(x, self._linear.ADD, total)

    def gated(self, x: Array) -> Array:
        out = self._workspace.take("gated", len(x), self._width, np.uint16)
        self._run(x, self._linear.GATED, out)
        return out

    def _run(self, x: Array, mode: int, out: Array) -> None:
        self._linear.linear(len(x), x, self._panels, self._config, mode, torch.get_num_threads(), out)


class OneDnnWeights:
    """Bfloat16 in and out; sums in float32 inside of oneDNN."""

    def __init__(self, weights: Sequence[torch.Tensor], bias: torch.Tensor | None) -> None:
        merged = torch.cat([weight.detach() for weight in weights])
        self._num_rows = merged.shape[0]
        self._weight = self._packed(merged)
        self._bias = None if bias is None else bias.detach()

    def store(self, x: Array) -> Array:
        return plain(self._product(x))

    def add(self, x: Array, total: Array) -> None:
        torch.from_numpy(total)[:, : self._num_rows] += self._product(x)

    def gated(self, x: Array) -> Array:
        gate, partner = self._product(x).chunk(2, dim=-1)
        return plain(torch.nn.functional.silu(gate).mul_(partner))

    @staticmethod
    def _packed(weight: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        return packed

    def _product(self, x: Array) -> torch.Tensor:
        packed = torch.from_numpy(x).view(torch.bfloat16)
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            packed, self._weight, self._bias, "none", [], ""
        )
        return out


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 (AVX512_BF16 or AMX)."""
    from torch.cpu import _is_amx_tile_supported, _is_avx512_bf16_supported

    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(_is_avx512_bf16_supported() or _is_amx_tile_supported())
