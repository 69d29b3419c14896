"""Divides the contexts that a step reads into shares, which a GPU's programs read one after another.

A row that computes one token reads all K and V of its context and computes very little with them, so a step of few rows
has to split their contexts to use a whole GPU, and in a step of many rows no long context may be left to one program at
the end. The same holds for tiles, which are up to 64 queries of one row: a short chunk after a long context has few.
The shares are listed on the host, once for all layers of a step, those of most tokens first:

    contexts         0: 9000 tokens | 1: 70 | 2: 2100        shares     0a 0b 0c 2 1      merges    0: a, b, c

Kernels read the list from the device. So a captured graph, and the step without it, divide contexts in the same way.
"""

from __future__ import annotations

import heapq
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

# The same for tiles, whose shares leave 64 times as much to merge. Merging takes as long as reading this many tokens.
_MIN_TILE_SHARE_TOKENS = 256
_MERGE_TOKENS = 1024
_TILE_ROUNDS = (1, 2, 3)
# With more tiles for each program, their number is no matter.
_MOST_TILE_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Shares:
    """What is divided (a row, or a tile of one) has shares of equal size. `shares` lists them all; `merges` is what has
    more than one. A part is what a share of these computes.

    The first columns of both name a row, or a row and a tile's first token in it.
    """

    shares: Int64Array  # [W, 4 or 5] ..., number of the share, number of shares that belong together, the first's part
    merges: Int64Array  # [M, 3 or 4] ..., first part, number of shares


def share_contexts(
    rows: Int64Array,  # [S] indices of rows that compute one token
    contexts: Int64Array,  # [S] how many tokens each reads
    num_programs: int,
) -> Shares:
    """Divides contexts for a GPU that reads `num_programs` shares at once. 0: each row is one share."""
    counts = np.ones_like(contexts)
    if num_programs and len(rows):
        counts = -(-contexts // _share_tokens(contexts, num_programs))
    return _listed(rows[:, None], contexts, counts)


def share_tiles(
    tiles: Int64Array,  # [N, 2] a row, and a tile's first token in it
    contexts: Int64Array,  # [N] how many tokens the queries of each read
    num_programs: int,
    most_shares: int,
) -> Shares:
    """Divides the contexts of tiles into at most `most_shares`, or N if these are more, for a GPU that computes
    `num_programs` shares at once. 0: each tile is one share."""
    return _listed(tiles, contexts, _tile_counts(contexts, num_programs, most_shares))


def _listed(names: Int64Array, contexts: Int64Array, counts: Int64Array) -> Shares:
    is_split = counts > 1
    num_parts = np.where(is_split, counts, 0)
    first_part = np.cumsum(num_parts) - num_parts
    index = np.repeat(np.arange(len(names)), counts)
    number = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(-(contexts / counts)[index], kind="stable")
    index, number = index[order], number[order]
    return Shares(
        np.column_stack([names[index], number, counts[index], first_part[index]]),
        np.column_stack([names[is_split], first_part[is_split], counts[is_split]]),
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


def _tile_counts(contexts: Int64Array, num_programs: int, most_shares: int) -> Int64Array:
    """[N] The number of shares of each tile with which the last program ends the earliest, merging included."""
    chosen, num_tiles = np.ones_like(contexts), len(contexts)
    room = min(most_shares, _MOST_TILE_ROUNDS * num_programs) - num_tiles
    if not num_tiles or room <= 0 or int(contexts.max()) <= _MERGE_TOKENS:
        return chosen
    total = int(contexts.sum())
    least = max(_MIN_TILE_SHARE_TOKENS, -(-total // room))
    chosen_time = _CLEAR_GAIN * _end(contexts, chosen, num_programs)
    for rounds in _TILE_ROUNDS:
        tokens = max(least, -(-total // (num_programs * rounds)))
        tokens = -(-tokens // _BLOCK) * _BLOCK
        counts = -(-contexts // tokens)
        time = _end(contexts, counts, num_programs) + _MERGE_TOKENS
        if time < chosen_time:
            chosen, chosen_time = counts, time
        if tokens <= least:
            break
    return chosen


def _end(contexts: Int64Array, counts: Int64Array, num_programs: int) -> float:
    """When the last program ends, if each takes the next of the longest shares as soon as it has read one."""
    programs = [0.0] * num_programs
    for tokens in np.sort(np.repeat(contexts / counts, counts))[::-1].tolist():
        heapq.heapreplace(programs, programs[0] + tokens)
    return max(programs)
