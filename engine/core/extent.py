"""Blocks of KV slots, and the one rule that says which slot a token takes.

block 7:  [ RT RT RT RT  .  .  .  .  .  .  . BE BE BE BE BE ]
            0  1  2  3                      11          15
            LEFT: token i at slot 7*B + i    RIGHT: token j at slot 7*B + (B-1-j)
"""

from __future__ import annotations

from engine.core.terms import Side

NO_NODE = 0

Key = tuple[int, tuple[int, ...]]  # of a chunk: its parent's node, and its token ids


class Extent:
    """A run of one request's tokens [start, start + length) on one side of one block.

    Grows and shrinks only at its end, up to `limit` tokens: it ends where the next multiple of the block size begins,
    so that an extent of a whole block is one chunk of the prefix cache. `node` is that chunk's place in the cache, once
    it has one, and `key` what it is found by there, while it is in this block. Token number i lies at slot
    `origin + i * stride`: nothing else says which slot a token takes. `block_slots` holds those of a whole block.

    Each side of a block has one for good, which begins anew with each request that grows there. Requests that share a
    full block hold the same extent.
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
        """It holds these tokens from now on."""
        self.start = start
        self.length = length
        self.limit = block_size - start % block_size
        self.node = NO_NODE

    @property
    def end(self) -> int:
        return self.start + self.length

    def slots(self, first: int, last: int) -> range:
        """The slots of its tokens number [first, last), in token order."""
        return self.block_slots[first:last]

    def __repr__(self) -> str:
        return f"Extent(block={self.block}, {self.side.name}, tokens=[{self.start}, {self.end}))"
