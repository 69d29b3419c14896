"""Blocks of KV slots, and the one rule that says which slot a token takes.

block 7:  [ RT RT RT RT  .  .  .  .  .  .  . BE BE BE BE BE ]
            0  1  2  3                      11          15
            LEFT: token i at slot 7*B + i    RIGHT: token j at slot 7*B + (B-1-j)
"""

from __future__ import annotations

from engine.core.types import Side

NO_NODE = 0


class Extent:
    """A run of one request's tokens [start, start + length) on one side of one block.

    Grows and shrinks only at its end, up to `limit` tokens: it ends where the next multiple of the block size begins,
    so that an extent of a whole block is one chunk of the prefix cache. `node` is that chunk's place in the cache, once
    it has one. Token number i lies at slot `origin + i * stride`: nothing else says which slot a token takes.
    """

    __slots__ = ("block", "length", "limit", "node", "origin", "side", "start", "stride")

    def __init__(self, block: int, side: Side, start: int, length: int, block_size: int) -> None:
        self.block = block
        self.side = side
        self.start = start
        self.length = length
        self.limit = block_size - start % block_size
        self.node = NO_NODE
        if side is Side.LEFT:
            self.origin = block * block_size
            self.stride = 1
        else:
            self.origin = block * block_size + block_size - 1
            self.stride = -1

    @property
    def end(self) -> int:
        return self.start + self.length

    def slots(self, first: int, last: int) -> range:
        """The slots of its tokens number [first, last), in token order."""
        return range(self.origin + first * self.stride, self.origin + last * self.stride, self.stride)

    def __repr__(self) -> str:
        return f"Extent(block={self.block}, {self.side.name}, tokens=[{self.start}, {self.end}))"
