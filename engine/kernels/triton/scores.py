"""Attention scores in base 2: the softmax then takes powers of 2, for which GPUs have an instruction."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# The score of a key that a query does not see. It is not -inf, since -inf - -inf is NaN. A query may see none of the
# first keys; what it sums then is multiplied by 0 as soon as it sees a key, and it always sees its own.
UNSEEN = tl.constexpr(-1e30)


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
