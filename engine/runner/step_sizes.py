"""Which numbers of tokens a GPU computes well, measured with the products of one layer of the loaded model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import groupby

from engine.core.trim import LEAST_KEPT, SIZE_STEP, trim_table
from engine.runner.graph_timing import replayed_s

log = logging.getLogger("engine.runner")

# Smaller steps take almost as long as reading the weights takes, so more tokens are always better.
_LEAST_TOKENS = 256


def measure_trims(products: Callable[[int], Callable[[], None]], max_tokens: int) -> tuple[int, ...]:
    """The table of `engine.core.trim` for steps of up to `max_tokens`. `products(n)` returns what computes the products
    of n tokens.

    Takes about half a second for an 8B model on an H200. If it fails, no step is trimmed.
    """
    sizes = range(SIZE_STEP, max_tokens + 1, SIZE_STEP)
    if LEAST_KEPT * max_tokens < _LEAST_TOKENS:
        return ()
    try:
        # The smaller ones are not measured: at an equal rate, none of them is trimmed.
        times_s = [float(size) if size < _LEAST_TOKENS else replayed_s(products(size)) for size in sizes]
    except RuntimeError as error:
        log.warning("no step is trimmed, because the products of a layer cannot be timed: %s", error)
        return ()
    table = trim_table(times_s)
    log.info("steps that are trimmed: %s", _described(table) or "none")
    return table


def _described(table: tuple[int, ...]) -> str:
    parts: list[str] = []
    for kept, group in groupby(enumerate(table), lambda item: item[1]):
        numbers = [number for number, _ in group]
        if kept:
            parts.append(f"{SIZE_STEP * numbers[0] + 1} to {SIZE_STEP * (numbers[-1] + 1)} tokens to {kept}")
    return ", ".join(parts)
