"""The blocks of KV memory: how full each is, who grows in it, and which have room for whom.

block 7:  [ RT RT RT RT  .  .  .  .  .  .  . BE BE BE BE BE ]     room: 7 slots, for whichever side comes first
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.core.extent import NO_NODE, Extent
from engine.core.kv.prefix import PrefixCache
from engine.core.request import Request
from engine.core.terms import Lane, Side

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
        # Of each block, made when it is first used from that side, and then kept: blocks change hands all the time.
        self._extents: dict[Side, list[Extent | None]] = {side: [None] * num_blocks for side in Side}

    @property
    def num_free(self) -> int:
        """Blocks to be had without taking anything from a request."""
        return len(self.free_blocks) + self.prefix.num_idle_blocks

    def open_fresh(self, request: Request, num_tokens: int) -> list[int]:
        """New extents for the request's next tokens, in free blocks, of which there must be enough. Their slots."""
        size, room, holders = self.block_size, self.room, self.holders
        is_rt = request.lane is Lane.RT
        side = Side.LEFT if is_rt else Side.RIGHT
        known, extents = self._extents[side], request.extents
        start = extents[-1].end if extents else 0
        blocks = self._take_free(-(-(start + num_tokens) // size) - start // size)
        slots: list[int] = []
        length = limit = size - start % size  # of the first; all others are whole blocks, but for the last
        for block in blocks:
            if length > num_tokens:
                length = num_tokens
            extent = known[block] or self._new_extent(block, side)
            extent.start = start  # as `Extent.begin` does
            extent.length = length
            extent.limit = limit
            extent.node = NO_NODE
            extents.append(extent)
            slots += extent.block_slots if length == size else extent.block_slots[:length]
            room[block] = size - length
            holders[block] = 1
            start += length
            num_tokens -= length
            length = limit = size
        if is_rt:
            for block in blocks:
                self.rt_extent[block] = True
        else:
            for block in blocks:
                self.be_holder[block] = request
            for block in (blocks[-1], blocks[0]):  # which may have begun within a chunk
                if room[block]:
                    self._shareable[block] = None
        request.tail = extents[-1]
        self.used_blocks[side] += len(blocks)
        return slots

    def open_next(self, request: Request) -> int:
        """`open_fresh` for the first token of a chunk and no more, which all that decode need time and again."""
        if self.free_blocks:
            block = self.free_blocks.pop()
        else:
            (block,) = self._take_free(1)
        return self._open(request, block, 1).origin

    def open_middle(self, request: Request, block: int) -> Extent:
        """A new extent of an RT request, empty, in the free middle of a block of BE's."""
        return self._open(request, block, 0)

    def _open(self, request: Request, block: int, length: int) -> Extent:
        """A new extent of so many tokens, which are all that the block gets now."""
        side = Side.LEFT if request.lane is Lane.RT else Side.RIGHT
        extent = self._extents[side][block] or self._new_extent(block, side)
        extent.begin(request.tail.end if request.tail is not None else 0, length, self.block_size)
        request.tail = extent
        request.extents.append(extent)
        self.room[block] -= length
        self.holders[block] += 1
        self.used_blocks[side] += 1
        if side is Side.LEFT:
            self.rt_extent[block] = True
        else:
            self.be_holder[block] = request
            if self.room[block]:
                self._shareable[block] = None
        return extent

    def _new_extent(self, block: int, side: Side) -> Extent:
        extent = self._extents[side][block] = Extent(block, side, 0, 0, self.block_size)
        return extent

    def _take_free(self, num_blocks: int) -> list[int]:
        """One block or more: free ones, then idle ones."""
        free_blocks = self.free_blocks
        blocks = free_blocks[: -num_blocks - 1 : -1]
        del free_blocks[-num_blocks:]
        if len(blocks) < num_blocks:
            blocks += self._evict(num_blocks - len(blocks))
        assert len(blocks) == num_blocks, "free blocks were counted that do not exist"
        return blocks

    def _evict(self, num_blocks: int) -> list[int]:
        """Idle blocks, as many as are wanted and there are."""
        evicted = self.prefix.evict(num_blocks)
        for block in evicted:
            self.room[block] = self.block_size
        return evicted

    def free_idle(self) -> None:
        """No prefix is known any more that nobody holds."""
        self.free_blocks += self._evict(self.prefix.num_idle_blocks)

    def join(self, extent: Extent) -> None:
        """One more request holds the full block."""
        block, side = extent.block, extent.side
        if not self.holders[block]:
            self.prefix.take(extent)
            self.used_blocks[side] += 1
            self.rt_extent[block] = side is Side.LEFT
        self.holders[block] += 1

    def release(self, extents: Sequence[Extent]) -> None:
        """A request gives up all of these extents; the last is free first."""
        size, room, holders = self.block_size, self.room, self.holders
        num_left = num_right = 0
        for extent in reversed(extents):
            block = extent.block
            others = holders[block] = holders[block] - 1
            if others and extent.length == size:
                continue  # others share this prefix
            if extent.side is Side.LEFT:
                num_left += 1
                self.rt_extent[block] = False
                if others:
                    self._shareable[block] = None
            else:
                num_right += 1
                self.be_holder[block] = None
            if others:
                room[block] += extent.length
            elif extent.key is not None:
                self.prefix.keep(extent)
            else:
                room[block] = size
                self.free_blocks.append(block)
        self.used_blocks[Side.LEFT] -= num_left
        self.used_blocks[Side.RIGHT] -= num_right

    def shorten(self, request: Request, extent: Extent, length: int) -> None:
        """The only holder of an extent gives up its end."""
        block = extent.block
        self.prefix.forget(extent)
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
