"""The blocks of KV memory: how full each is, who grows in it, and which have room for whom.

block 7:  [ RT RT RT RT  .  .  .  .  .  .  . BE BE BE BE BE ]     room: 7 slots, for whichever side comes first
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.core.blocks import Extent
from engine.core.prefix import PrefixCache
from engine.core.request import Request
from engine.core.types import Lane, Side

# Of all blocks, how many unreferenced prefix blocks a lane keeps from the other.
PROTECTED_SHARE = 0.25


class BlockPool:
    """`num_blocks` blocks of `block_size` slots. A block is free, or idle (nobody holds it, but the prefix cache knows
    what is in it), or held: by one extent a side, or by several requests that share a full one."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.prefix = PrefixCache(int(num_blocks * PROTECTED_SHARE))
        self.free_blocks = list(range(num_blocks - 1, -1, -1))
        self.room = [block_size] * num_blocks  # free slots
        self.holders = [0] * num_blocks  # extents
        self.rt_extent = [False] * num_blocks  # the left side is taken
        self.be_holder: list[Request | None] = [None] * num_blocks  # who grows on the right side
        self.used_blocks = dict.fromkeys(Side, 0)
        self._shareable: dict[int, None] = {}  # blocks whose left side RT may take; checked when they come up

    @property
    def num_free(self) -> int:
        """Blocks to be had without taking anything from a request."""
        return len(self.free_blocks) + self.prefix.num_idle_blocks

    def open_fresh(self, request: Request, num_tokens: int) -> list[int]:
        """New extents for the request's next tokens, in free blocks, of which there must be enough. Their slots."""
        size, free_blocks, is_rt = self.block_size, self.free_blocks, request.lane is Lane.RT
        room, holders, be_holder, rt_extent = self.room, self.holders, self.be_holder, self.rt_extent
        side = Side.LEFT if is_rt else Side.RIGHT
        extents = request.extents
        start = extents[-1].end if extents else 0
        slots: list[int] = []
        num_held = len(extents)
        length = size - start % size  # of the first; those after it are whole blocks, but for the last
        while num_tokens:
            if length > num_tokens:
                length = num_tokens
            block = free_blocks.pop() if free_blocks else self._evict()
            extent = Extent(block, side, start, length, size)
            extents.append(extent)
            slots += extent.slots(0, length)
            room[block] = size - length
            holders[block] = 1
            if is_rt:
                rt_extent[block] = True
            else:
                be_holder[block] = request
            start += length
            num_tokens -= length
            length = size
        if not is_rt and room[extents[-1].block]:
            self._shareable[extents[-1].block] = None
        if not is_rt and room[extents[num_held].block]:  # it began within a chunk
            self._shareable[extents[num_held].block] = None
        request.tail = extents[-1]
        self.used_blocks[side] += len(extents) - num_held
        return slots

    def open_middle(self, request: Request, block: int) -> Extent:
        """A new extent of an RT request, empty, in the free middle of a block of BE's."""
        start = request.tail.end if request.tail is not None else 0
        extent = request.tail = Extent(block, Side.LEFT, start, 0, self.block_size)
        request.extents.append(extent)
        self.holders[block] += 1
        self.used_blocks[Side.LEFT] += 1
        self.rt_extent[block] = True
        return extent

    def _evict(self) -> int:
        block = self.prefix.evict()
        assert block is not None, "free blocks were counted that do not exist"
        self.room[block] = self.block_size
        return block

    def join(self, block: int, side: Side) -> None:
        """One more request holds the full block, which grew from that side."""
        if not self.holders[block]:
            self.prefix.take(block, side)
            self.used_blocks[side] += 1
            self.rt_extent[block] = side is Side.LEFT
        self.holders[block] += 1

    def release(self, extents: Sequence[Extent]) -> None:
        """A request gives up all of these extents; the last is free first."""
        size, holders = self.block_size, self.holders
        for extent in reversed(extents):
            block, side = extent.block, extent.side
            holders[block] -= 1
            if holders[block] and extent.length == size:
                continue  # others share this prefix
            self.used_blocks[side] -= 1
            if side is Side.LEFT:
                self.rt_extent[block] = False
            else:
                self.be_holder[block] = None
            if holders[block]:
                self.room[block] += extent.length
                if side is Side.LEFT:
                    self._shareable[block] = None
            elif not self.prefix.release(block, side):
                self.room[block] = size
                self.free_blocks.append(block)

    def shorten(self, request: Request, extent: Extent, length: int) -> None:
        """The only holder of an extent gives up its end."""
        block = extent.block
        self.prefix.forget(block)
        self.room[block] += extent.length - length
        extent.length = length
        if extent.side is Side.RIGHT:
            self.be_holder[block] = request  # which may have been another's that shared it
            if not self.rt_extent[block]:
                self._shareable.pop(block, None)
                self._shareable[block] = None  # last in, first looked at

    def is_shared(self, extent: Extent) -> bool:
        """Whether other requests hold the same tokens in the same block: giving it up frees nothing."""
        return extent.length == self.block_size and self.holders[extent.block] > 1

    def is_shareable(self, block: int) -> bool:
        """Whether RT may take the left side of this block of BE's."""
        return 0 < self.room[block] < self.block_size and not self.rt_extent[block]

    def shareable(self) -> Iterator[int]:
        """The blocks whose left side RT may take, the newest first, for they have most room."""
        stale = []
        try:
            for block in reversed(self._shareable):
                holder = self.be_holder[block]
                if not self.is_shareable(block):
                    stale.append(block)
                elif holder is None or not holder.is_sheltered:
                    yield block
        finally:
            for block in stale:
                del self._shareable[block]
