"""The matrix products of a decoder on a GPU: by torch, or by our own kernel where that is faster, as measured at load.

torch's products are made for large batches. How well they do for a handful of tokens depends on the GPU, the
library's version and the matrix; so both ways are tried for each kind of product and each number of tokens up to
`MAX_TOKENS`, in steps of two, and the faster one is kept. It takes about a second, and once, to compile.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from triton.runtime.errors import OutOfResources

from engine.kernels.triton.cached_rows import num_processors
from engine.kernels.triton.linear import MAX_TOKENS, TILINGS, Tiling, linear_few

log = logging.getLogger("engine.model")

# As many bytes of weights are read, from one layer after another, before one is read again: ten times what an H200's L2
# cache holds (50 MiB), so that each is read from memory, as in a step.
_MEASURED_BYTES = 512 * 2**20
_NUM_MEASUREMENTS = 3
# Ours must be this much faster than torch's: less is noise.
_CLEAR_GAIN = 0.97
_TOKEN_COUNTS = tuple(1 << i for i in range(MAX_TOKENS.bit_length()))  # 1, 2, 4 ... MAX_TOKENS

Seconds = Callable[[Callable[[], None]], float]


@dataclass(frozen=True, slots=True)
class Weight:
    """One or more linear layers over the same input, one above the other."""

    weight: torch.Tensor  # [N, K]
    bias: torch.Tensor | None  # [N]


class Product:
    """How one kind of product, such as every layer's output projection, is done for each number of tokens."""

    def __init__(self, tilings: Sequence[Tiling | None] = ()) -> None:
        """`tilings[i]` is for up to 2 ** i tokens, None for torch's product; more tokens than all are torch's too."""
        self._tilings = tuple(tilings)

    def __call__(self, weight: Weight, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] @ weight.T + bias: [T, N] of x's dtype, or parts [S, T, N] in float32 that add up to it."""
        i = (len(x) - 1).bit_length()
        tiling = self._tilings[i] if i < len(self._tilings) else None
        return _multiply(weight, x, tiling)

    @property
    def tilings(self) -> tuple[Tiling | None, ...]:
        return self._tilings


def fastest(weights: Sequence[Weight], seconds: Seconds | None = None) -> Product:
    """The faster way for products with each of `weights`, which are of one shape. `seconds` times what it is given; by
    default on the GPU."""
    shape, dtype = weights[0].weight.shape, weights[0].weight.dtype
    if dtype is torch.float32:
        return Product()  # our kernel multiplies those without the matrix unit, to be exact
    measure = seconds if seconds is not None else _seconds_on_gpu
    enough = max(1, -(-_MEASURED_BYTES // (weights[0].weight.numel() * dtype.itemsize)))
    measured = weights[:enough]
    tilings: list[Tiling | None] = []
    candidates: list[Tiling] = list(TILINGS)
    for count in _TOKEN_COUNTS:
        x = torch.randn(count, shape[1], device=measured[0].weight.device).to(dtype)

        def run(tiling: Tiling | None, x: torch.Tensor = x) -> Callable[[], None]:
            return lambda: _run_all(measured, x, tiling)

        times = {tiling: _seconds_if_it_fits(measure, run(tiling)) for tiling in candidates}
        by_torch = measure(run(None))
        best = min(times, key=lambda tiling: times[tiling])
        tilings.append(best if times[best] < by_torch * _CLEAR_GAIN else None)
        log.debug("%s with %d tokens: torch %.3g s, ours %.3g s", tuple(shape), count, by_torch, times[best])
        # What is far behind at a few tokens does not lead at more, and each is to be compiled.
        candidates = sorted(candidates, key=lambda tiling: times[tiling])[:2]
    return Product(tilings)


def _seconds_if_it_fits(measure: Seconds, run: Callable[[], None]) -> float:
    """Tilings are for the shared memory of an A100 or H100; a smaller GPU has no room for some."""
    try:
        return measure(run)
    except OutOfResources:
        return math.inf


def _run_all(weights: Sequence[Weight], x: torch.Tensor, tiling: Tiling | None) -> None:
    for weight in weights:
        _multiply(weight, x, tiling)


def _multiply(weight: Weight, x: torch.Tensor, tiling: Tiling | None) -> torch.Tensor:
    if tiling is None:
        return F.linear(x, weight.weight, weight.bias)
    return linear_few(x, weight.weight, weight.bias, tiling, num_processors(x.device))


def _seconds_on_gpu(run: Callable[[], None]) -> float:
    """The least of a few measurements, after one that is not counted: it compiles, and wakes the GPU's clocks."""
    times: list[float] = []
    for _ in range(1 + _NUM_MEASUREMENTS):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return min(times[1:])
