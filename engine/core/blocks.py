"""Blocks of KV slots, and the one rule that says which slot a token takes.

block 7:  [ RT RT RT RT  .  .  .  .  .  .  . BE BE BE BE BE ]
            0  1  2  3                      11          15
            LEFT: token i at slot 7*B + i    RIGHT: token j at slot 7*B + (B-1-j)
"""

from __future__ import annotations

from engine.core.types import Side


class Extent:
    """A run of one request's tokens [start, start + length) on one side of one block.

    Grows and shrinks only at its end. `start` is a multiple of the block size.
    """

    __slots__ = ("block", "length", "side", "start")

    def __init__(self, block: int, side: Side, start: int, length: int) -> None:
        self.block = block
        self.side = side
        self.start = start
        self.length = length

    @property
    def end(self) -> int:
        return self.start + self.length

    def __repr__(self) -> str:
        return f"Extent(block={self.block}, {self.side.name}, tokens=[{self.start}, {self.end}))"


def slot_of(block: int, side: Side, index: int, block_size: int) -> int:
    """The slot of an extent's token number `index`, 0 <= index < block_size."""
    if side is Side.LEFT:
        return block * block_size + index
    return block * block_size + (block_size - 1 - index)


def slots_of(extent: Extent, first: int, last: int, block_size: int) -> range:
    """The slots of an extent's tokens number [first, last), in token order."""
    if extent.side is Side.LEFT:
        base = slot_of(extent.block, Side.LEFT, 0, block_size)
        return range(base + first, base + last)
    top = slot_of(extent.block, Side.RIGHT, 0, block_size)
    return range(top - first, top - last, -1)
