"""Where a step should end: at a number of tokens with which a GPU computes more tokens per second than with a few more.

A matrix product is divided into tiles, which a GPU computes in waves. Where a step has a few tokens more than fill its
waves, another wave computes little else, and the step takes as long as one of many more tokens:

    tokens       | 896      960      1024     1088     1152
    milliseconds | 20       21       22       28       28        1088 are trimmed to 1024

The table of such numbers is measured when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

SIZE_STEP = 64  # of the numbers of tokens that are measured
# A step keeps at least this share of its tokens, and it must compute this many times as many per second.
LEAST_KEPT, LEAST_GAIN = 0.85, 1.05


def trim_table(seconds: Sequence[float]) -> tuple[int, ...]:
    """The table of a device on which the products of `SIZE_STEP * (i + 1)` tokens take `seconds[i]`.

    Element i is for steps of more than `SIZE_STEP * i` and at most `SIZE_STEP * (i + 1)` tokens: the number to which
    they are trimmed, or 0 if they are not.
    """
    sizes = [SIZE_STEP * (i + 1) for i in range(len(seconds))]
    table: list[int] = []
    for i, size in enumerate(sizes):
        best, rate = 0, LEAST_GAIN * size / seconds[i]
        for shorter, shorter_s in zip(sizes[:i], seconds, strict=False):
            if shorter >= LEAST_KEPT * size and shorter / shorter_s >= rate:
                best, rate = shorter, shorter / shorter_s
        table.append(best)
    return tuple(table)


def trimmed(table: Sequence[int], num_tokens: int) -> int:
    """The number of tokens that a step of `num_tokens` should have, if it could have more."""
    i = (num_tokens - 1) // SIZE_STEP
    return (table[i] if i < len(table) else 0) or num_tokens
