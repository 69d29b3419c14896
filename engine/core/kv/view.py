"""A picture of KV memory for people: how much of each stretch of blocks is taken from the left and from the right.

cell 0: blocks 0..3      [ RT RT RT RT RT | cached |         free         | BE BE BE BE ]
cell 1: blocks 4..7      [ RT |                    free                        | BE BE ]
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress

from engine.core.kv.cache import KVCacheManager


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Tokens in each cell of `blocks_per_cell` blocks; the last cell may have fewer. `left` and `right` are held by
    requests, those of RT on the left; `cached` are prefixes that no request holds, kept until their memory is
    needed."""

    blocks_per_cell: int
    left: list[int]
    right: list[int]
    cached: list[int]


def occupancy(kv: KVCacheManager, max_cells: int) -> Occupancy:
    """The picture in at most `max_cells` cells. O(blocks), but in Python only for the blocks that both lanes hold."""
    size, room, has_left, num_extents = kv.block_size, kv.pool.room, kv.pool.has_left, kv.pool.num_extents
    step = -(-kv.num_blocks // max_cells)
    right_in_shared = [0] * -(-kv.num_blocks // step)  # BE's tokens in the blocks that both lanes hold
    for block, length in kv.pool.sharing.right_lengths().items():
        right_in_shared[block // step] += length
    seen = Occupancy(step, [], [], [])
    for cell, first in enumerate(range(0, kv.num_blocks, step)):
        part = slice(first, first + step)
        rooms, with_left = room[part], has_left[part]
        cached = size * (num_extents[part].count(0) - rooms.count(size))  # not held, and yet not free
        left = size * with_left.count(True) - sum(compress(rooms, with_left)) - right_in_shared[cell]
        seen.left.append(left)
        seen.cached.append(cached)
        seen.right.append(size * len(rooms) - sum(rooms) - left - cached)
    return seen
