"""Divides the contexts of rows that compute one token into shares, which a GPU's programs read one after another.

Such a row reads all K and V of its context and computes very little with them, so a step of few rows has to split their
contexts to use a whole GPU, and in a step of many rows no long context may be left to one program at the end. The
shares are listed on the host, once for all layers of a step, those of most tokens first:

    contexts         0: 9000 tokens | 1: 70 | 2: 2100        shares     0a 0b 0c 2 1      merges    0: a, b, c

Kernels read the list from the device. So a captured graph, and the step without it, divide contexts in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

# A shorter share is not worth its cost when shares are merged.
MIN_SHARE_TOKENS = 128
# All rows together have at most this many shares more than there are rows, so that a captured graph has room for them.
MAX_EXTRA_SHARES = 512
# The number of shares that each program takes in turn. With more, lengths are more equal, and more is merged.
_ROUNDS = (1, 2, 4, 8)
# More rounds must reduce the estimated time to less than this.
_CLEAR_GAIN = 0.95
_BLOCK = 64  # tokens: shares are whole blocks of what a kernel reads at a time


@dataclass(frozen=True, slots=True)
class Shares:
    """Row i of a step has `counts[i]` shares of equal size. `shares` lists them all; `merges` are the rows with more
    than one. A part is what a share of such a row computes."""

    shares: Int64Array  # [W, 4] row, number of the share in the row, number of the row's shares, the row's first part
    merges: Int64Array  # [M, 3] row, first part, number of shares


def share_contexts(
    rows: Int64Array,  # [S] indices of rows that compute one token
    contexts: Int64Array,  # [S] how many tokens each reads
    num_programs: int,
) -> Shares:
    """Divides contexts for a GPU that reads `num_programs` shares at once. 0: each row is one share."""
    counts = np.ones_like(contexts)
    if num_programs and len(rows):
        counts = -(-contexts // _share_tokens(contexts, num_programs))
    is_split = counts > 1
    num_parts = np.where(is_split, counts, 0)
    first_part = np.cumsum(num_parts) - num_parts
    index = np.repeat(np.arange(len(rows)), counts)
    number = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(-(contexts / counts)[index], kind="stable")
    index, number = index[order], number[order]
    return Shares(
        np.stack([rows[index], number, counts[index], first_part[index]], axis=1),
        np.stack([rows[is_split], first_part[is_split], counts[is_split]], axis=1),
    )


def _share_tokens(contexts: Int64Array, num_programs: int) -> int:
    """The largest size of a share with which programs that take shares in turn end about as early as they can."""
    total, longest = int(contexts.sum()), int(contexts.max())
    least = max(MIN_SHARE_TOKENS, -(-total // MAX_EXTRA_SHARES))
    chosen, chosen_time = 0, 0.0
    for rounds in _ROUNDS:
        tokens = max(least, -(-total // (num_programs * rounds)))
        tokens = -(-tokens // _BLOCK) * _BLOCK
        num_shares = int((-(-contexts // tokens)).sum())
        time = -(-num_shares // num_programs) * min(tokens, longest)
        if not chosen or time < _CLEAR_GAIN * chosen_time:
            chosen, chosen_time = tokens, time
        if tokens <= least:
            break
    return chosen
