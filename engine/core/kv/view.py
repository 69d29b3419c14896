"""A picture of KV memory for people: how much of each stretch of blocks is taken from its left, and from its right.

cell 0: blocks 0..3      [ RT RT RT RT RT | cached |         free         | BE BE BE BE ]
cell 1: blocks 4..7      [ RT |                    free                        | BE BE ]
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress

from engine.core.kv.cache import KVCacheManager


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Tokens of each cell, which has `blocks_a_cell` blocks; the last may have fewer. `left` and `right` are held by
    requests, RT's from the left; `cached` by none: prefixes kept until their memory is wanted."""

    blocks_a_cell: int
    left: list[int]
    right: list[int]
    cached: list[int]


def occupancy(kv: KVCacheManager, max_cells: int) -> Occupancy:
    """In at most `max_cells` cells. O(blocks), in loops of C but for the blocks that both lanes hold."""
    size, room, has_rt, holders = kv.block_size, kv.pool.room, kv.pool.rt_extent, kv.pool.holders
    step = -(-kv.num_blocks // max_cells)
    shared = _right_of_shared_blocks(kv)
    shared_in_cell = [0] * -(-kv.num_blocks // step)
    for block, length in shared.items():
        shared_in_cell[block // step] += length
    seen = Occupancy(step, [], [], [])
    for cell, first in enumerate(range(0, kv.num_blocks, step)):
        part = slice(first, first + step)
        rooms, with_rt = room[part], has_rt[part]
        cached = size * (holders[part].count(0) - rooms.count(size))  # nobody's, and yet not free
        left = size * with_rt.count(True) - sum(compress(rooms, with_rt)) - shared_in_cell[cell]
        seen.left.append(left)
        seen.cached.append(cached)
        seen.right.append(size * len(rooms) - sum(rooms) - left - cached)
    return seen


def _right_of_shared_blocks(kv: KVCacheManager) -> dict[int, int]:
    """Of the blocks that RT and BE hold together, how many tokens BE has in each."""
    blocks = compress(enumerate(kv.pool.be_holder), kv.pool.rt_extent)
    return {
        block: next(extent.length for extent in reversed(holder.extents) if extent.block == block)
        for block, holder in blocks
        if holder is not None
    }
