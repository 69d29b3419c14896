"""Linear layers of the GPU decoder: cuBLAS or our own kernel, whichever is faster, as measured at load.

torch's products are made for large batches. How fast they are for a few tokens depends on the GPU, the version of the
library and the matrix. So both are measured for each kind of layer and each number of tokens up to `MAX_TOKENS`, in
powers of two, and the faster one is kept. They are measured as replays of a graph, because a launch from Python takes
longer than many of these products, and steps of so few tokens are replayed too. All kinds together take about a second,
plus the compilation of our kernel, once for each tiling and each power of two from 16 tokens on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from triton.runtime.errors import OutOfResources

from engine.kernels.triton.fp8 import converts_fp8
from engine.kernels.triton.gpu import processors_of
from engine.kernels.triton.linear import MAX_TOKENS, TILINGS, Scales, Tiling, linear_few
from engine.runner.graph_timing import replayed_s
from engine.runner.model.linear_fp8 import fp8_linear, quantize_tokens

log = logging.getLogger("engine.model")

# This many bytes of weights are read, from one layer after another, before a weight is read again: ten times the size
# of an H200's L2 cache (50 MiB), so that each weight comes from memory, as it does in a step.
_MEASURED_BYTES = 512 * 2**20
# Our kernel must be this much faster than torch's; a smaller difference is noise.
_CLEAR_GAIN = 0.97
_TOKEN_COUNTS = tuple(1 << i for i in range(MAX_TOKENS.bit_length()))  # 1, 2, 4 ... MAX_TOKENS

Seconds = Callable[[Callable[[], None]], float]


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """The weights of one or more linear layers that share their input, stacked."""

    weight: torch.Tensor  # [N, K]
    bias: torch.Tensor | None  # [N]
    scales: torch.Tensor | None = None  # [N] float32, if the weight is float8


class TunedLinear:
    """A linear operation that uses the fastest kernel for each number of tokens.

    One of these serves all layers of a kind, such as every layer's output projection, whose weights have one shape.
    """

    def __init__(self, tilings: Sequence[Tiling | None] = ()) -> None:
        """`tilings[i]` is for up to 2 ** i tokens; None means torch's product, which also takes all larger counts."""
        self.tilings = tuple(tilings)

    def __call__(self, weights: LinearWeights, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] @ weight.T + bias: [T, N] of x's dtype, or parts [S, T, N] in float32 that add up to it."""
        i = (len(x) - 1).bit_length()
        tiling = self.tilings[i] if i < len(self.tilings) else None
        return _linear(weights, x, tiling)


def tune_linear(layers: Sequence[LinearWeights], seconds: Seconds | None = None) -> TunedLinear:
    """Measures which kernels are fastest for `layers`, whose weights have one shape.

    `seconds` returns how long the function takes that it is given; the default measures on the GPU.
    """
    shape, dtype = layers[0].weight.shape, layers[0].weight.dtype
    if dtype is torch.float32:
        return TunedLinear()  # our kernel multiplies float32 without the matrix unit, to be exact
    is_fp8 = layers[0].scales is not None
    if is_fp8 and not converts_fp8(layers[0].weight.device):
        return TunedLinear()
    measure = seconds if seconds is not None else replayed_s
    num_measured = max(1, -(-_MEASURED_BYTES // (layers[0].weight.numel() * dtype.itemsize)))
    measured = layers[:num_measured]
    tilings: list[Tiling | None] = []
    table: list[str] = []
    candidates: list[Tiling] = list(TILINGS)
    for count in _TOKEN_COUNTS:
        x = torch.randn(count, shape[1], device=measured[0].weight.device).to(
            torch.bfloat16 if is_fp8 else dtype
        )

        def run(tiling: Tiling | None, x: torch.Tensor = x) -> Callable[[], None]:
            return lambda: _run_all(measured, x, tiling)

        times = {tiling: _seconds_if_it_fits(measure, run(tiling)) / len(measured) for tiling in candidates}
        by_torch = measure(run(None)) / len(measured)
        best = min(times, key=lambda tiling: times[tiling])
        tilings.append(best if times[best] < by_torch * _CLEAR_GAIN else None)
        table.append(f"{count}: {_us(by_torch)} {_us(times[best])}{'' if tilings[-1] is None else '*'}")
        # A tiling that is slow for a few tokens is not the fastest for more, and each has to be compiled.
        candidates = sorted(candidates, key=lambda tiling: times[tiling])[:2]
    log.info(
        "products of %d x %d weights, tokens: microseconds by torch and by our kernel (* is used): %s",
        *shape, ", ".join(table),
    )  # fmt: skip
    return TunedLinear(tilings)


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def _seconds_if_it_fits(measure: Seconds, run: Callable[[], None]) -> float:
    """The tilings are for the shared memory of an A100 or H100; on a smaller GPU some do not fit."""
    try:
        return measure(run)
    except OutOfResources:
        return math.inf


def _run_all(layers: Sequence[LinearWeights], x: torch.Tensor, tiling: Tiling | None) -> None:
    for weights in layers:
        _linear(weights, x, tiling)


def _linear(weights: LinearWeights, x: torch.Tensor, tiling: Tiling | None) -> torch.Tensor:
    if tiling is None:
        if weights.scales is not None:
            return fp8_linear(x, weights.weight, weights.scales, weights.bias)
        return F.linear(x, weights.weight, weights.bias)
    processors = processors_of(x.device)
    if weights.scales is None:
        return linear_few(x, weights.weight, weights.bias, tiling, processors)
    tokens, token_scales = quantize_tokens(x)
    scales = Scales(token_scales, weights.scales, x.dtype)
    return linear_few(tokens, weights.weight, weights.bias, tiling, processors, scales)
