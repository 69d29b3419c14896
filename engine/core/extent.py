"""Extents: runs of tokens in blocks of KV slots, and the one rule for which slot a token takes.

block 7:  [ RT RT RT RT  .  .  .  .  .  .  . BE BE BE BE BE ]
            0  1  2  3                      11          15
            LEFT: token i at slot 7*B + i    RIGHT: token j at slot 7*B + (B-1-j)
"""

from __future__ import annotations

from engine.core.terms import Side

NO_NODE = 0

Key = tuple[int, tuple[int, ...]]  # of a full block: its parent's node and its token ids


class Extent:
    """A run of one request's tokens [start, start + length) on one side of one block.

    An extent grows and shrinks only at its end, up to `limit` tokens: it ends at the next multiple of the block size,
    so that every full extent is one block of the prefix cache. `node` is its place in the cache, if it has one, and
    `key` is what the cache finds it by, if it finds this very extent. Token number i lies at slot
    `origin + i * stride`: this is the only rule for which slot a token takes. `block_slots` are the slots of the whole
    block.

    There is one extent object per side of a block, reused by every request that grows there. Requests that share a full
    block hold the same extent.
    """

    __slots__ = (
        "block",
        "block_slots",
        "key",
        "length",
        "limit",
        "node",
        "origin",
        "side",
        "start",
        "stride",
    )

    def __init__(self, block: int, side: Side, start: int, length: int, block_size: int) -> None:
        self.block = block
        self.side = side
        if side is Side.LEFT:
            self.origin = block * block_size
            self.stride = 1
        else:
            self.origin = block * block_size + block_size - 1
            self.stride = -1
        self.block_slots = range(self.origin, self.origin + block_size * self.stride, self.stride)
        self.key: Key | None = None
        self.begin(start, length, block_size)

    def begin(self, start: int, length: int, block_size: int) -> None:
        """Hold these tokens from now on."""
        self.start = start
        self.length = length
        self.limit = block_size - start % block_size
        self.node = NO_NODE

    @property
    def end(self) -> int:
        return self.start + self.length

    def slots(self, first: int, last: int) -> range:
        """The slots of tokens number [first, last) of the extent, in token order."""
        return self.block_slots[first:last]

    def __repr__(self) -> str:
        return f"Extent(block={self.block}, {self.side.name}, tokens=[{self.start}, {self.end}))"
