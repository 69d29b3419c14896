"""Attention scores in base 2: the softmax then takes powers of 2, for which GPUs have an instruction."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def base2_scores(
    products,  # any shape, float32
    scale,
    softcap,  # float32, only read if HAS_SOFTCAP
    HAS_SOFTCAP: tl.constexpr,
):
    """Scores times log2(e): exp2 of these is exp of the scores."""
    if HAS_SOFTCAP:
        # tanh(x) = 1 - 2 / (exp(2x) + 1), which holds at both infinities too.
        power = tl.exp2(products * (scale * 2.0 * LOG2_E / softcap))
        scores = (softcap * LOG2_E) * (1.0 - 2.0 / (power + 1.0))
    else:
        scores = products * (scale * LOG2_E)
    return scores
