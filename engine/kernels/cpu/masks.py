"""Masks of logits on a CPU, compiled by numba; by torch's operations without it and for dtypes that numba lacks."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from engine.kernels.reference import masks as reference

HAS_NUMBA = importlib.util.find_spec("numba") is not None

if HAS_NUMBA:
    import numpy as np
    from numba import njit

    @njit(cache=True, nogil=True)
    def _apply(
        logits: Any,  # [n, V] float32, changed
        rows: Any,  # [m] int64
        words: Any,  # [m, >= V / 32] uint32
    ) -> None:
        # On one thread: it writes a few megabytes at most, and most words are all ones or all zeros.
        num_tokens = logits.shape[1]
        nothing = np.float32(-np.inf)
        for i in range(len(rows)):
            row = logits[rows[i]]
            for w in range((num_tokens + 31) // 32):
                word = words[i, w]
                if word == np.uint32(0xFFFFFFFF):
                    continue
                first = 32 * w
                last = min(first + 32, num_tokens)
                if word == np.uint32(0):
                    row[first:last] = nothing
                    continue
                for token in range(first, last):
                    if not (word >> np.uint32(token - first)) & np.uint32(1):
                        row[token] = nothing


def apply_masks(
    logits: torch.Tensor,  # [n, V], changed
    rows: torch.Tensor,  # [m] int64, indices into n, none of them twice
    words: torch.Tensor,  # [m, >= V / 32] int32
) -> None:
    """`engine.kernels.reference.masks.apply_masks`."""
    if HAS_NUMBA and logits.dtype is torch.float32:
        _apply(logits.numpy(), rows.numpy(), words.numpy().view("uint32"))
    else:
        reference.apply_masks(logits, rows, words)


def compile_ahead() -> None:
    """Has numba compile the kernel, so that no step waits for that."""
    apply_masks(torch.zeros(1, 32), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int32))
