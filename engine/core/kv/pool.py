"""The blocks of KV memory: how full each is, how many requests hold it, and which are free.

A block is free, or held by requests, or idle: held by none, but the prefix cache knows its content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.core.extent import NO_NODE, Extent
from engine.core.kv.prefix import PrefixCache
from engine.core.kv.sharing import BlockSharing
from engine.core.request import Request
from engine.core.terms import Lane, Side

# Share of all blocks: as many idle blocks of a lane are protected from eviction by the other lane.
PROTECTED_SHARE = 0.25


class BlockPool:
    """`num_blocks` blocks of `block_size` slots. A block is held by one extent per side, or by several requests that
    share a full one. `sharing`: the two sides of a block may belong to different lanes."""

    def __init__(self, num_blocks: int, block_size: int, *, sharing: bool = True) -> None:
        self.block_size = block_size
        self.prefix = PrefixCache(int(num_blocks * PROTECTED_SHARE))
        self.free_blocks = list(range(num_blocks - 1, -1, -1))
        self.room = [block_size] * num_blocks  # free slots of each block
        self.num_extents = [0] * num_blocks  # that requests hold in each block
        self.has_left = [False] * num_blocks  # whether the left side of each block is taken
        self.used_blocks = dict.fromkeys(Side, 0)
        self.sharing = BlockSharing(block_size, self.room, self.has_left, is_enabled=sharing)
        # The extents of each block, made when a side is first used and then reused: blocks change hands all the time.
        self._extents: dict[Side, list[Extent | None]] = {side: [None] * num_blocks for side in Side}

    @property
    def num_free(self) -> int:
        """Number of blocks that can be opened without taking anything from a request."""
        return len(self.free_blocks) + self.prefix.num_idle_blocks

    # Growing --------------------------------------------------------------------------------------------

    def grow_each(self, requests: Iterator[Request], slots: list[int]) -> Request | None:
        """Append a slot for the next token of each request in its last extent. Stops at the first request whose last
        extent has no room, and returns it; None if all have a slot."""
        room = self.room
        for request in requests:
            tail = request.tail
            if tail is None:
                return request
            length = tail.length
            if length >= tail.limit or not room[tail.block]:
                return request
            room[tail.block] -= 1
            slots.append(tail.origin + length * tail.stride)
            tail.length = length + 1
        return None

    def grow(self, extent: Extent, num_tokens: int) -> range:
        """The slots of `num_tokens` more tokens in an extent, which must have room for them."""
        first = extent.length
        extent.length = first + num_tokens
        self.room[extent.block] -= num_tokens
        return extent.slots(first, extent.length)

    def open_fresh(self, request: Request, num_tokens: int) -> list[int]:
        """The slots of the request's next `num_tokens` tokens in new extents. There must be enough free blocks."""
        size, room, num_extents = self.block_size, self.room, self.num_extents
        is_rt = request.lane is Lane.RT
        side = Side.LEFT if is_rt else Side.RIGHT
        known, extents = self._extents[side], request.extents
        start = extents[-1].end if extents else 0
        blocks = self._take_free(-(-(start + num_tokens) // size) - start // size)
        slots: list[int] = []
        length = limit = (
            size - start % size
        )  # of the first extent; the others fill whole blocks, except the last
        for block in blocks:
            if length > num_tokens:
                length = num_tokens
            extent = known[block] or self._new_extent(block, side)
            extent.start = start  # as in `Extent.begin`, without the call
            extent.length = length
            extent.limit = limit
            extent.node = NO_NODE
            extents.append(extent)
            slots += extent.block_slots if length == size else extent.block_slots[:length]
            room[block] = size - length
            num_extents[block] = 1
            start += length
            num_tokens -= length
            length = limit = size
        if is_rt:
            for block in blocks:
                self.has_left[block] = True
        else:
            for block in (blocks[-1], blocks[0]):  # all others are full
                if room[block]:
                    self.sharing.open_right(request, block)
        request.tail = extents[-1]
        self.used_blocks[side] += len(blocks)
        return slots

    def open_next(self, request: Request) -> int:
        """The slot of the request's next token, the first of a free block. The same as `open_fresh` with one token, but
        faster: decoding requests need it time and again."""
        if self.free_blocks:
            block = self.free_blocks.pop()
        else:
            (block,) = self._take_free(1)
        return self._open(request, block, 1).origin

    def open_one(self, request: Request, num_tokens: int) -> list[int]:
        """The slots of the request's next `num_tokens` tokens in one free block, at whose start the first of them is.
        The same as `open_fresh`, but faster."""
        (block,) = self._take_free(1)
        return list(self._open(request, block, num_tokens).slots(0, num_tokens))

    def open_middle(self, request: Request, block: int, num_tokens: int) -> range:
        """The slots of an RT request's next tokens in the free middle of a block of BE's."""
        return self._open(request, block, num_tokens).slots(0, num_tokens)

    def _open(self, request: Request, block: int, length: int) -> Extent:
        """A new extent of `length` tokens. The other side of the block may be taken."""
        is_rt = request.lane is Lane.RT
        side = Side.LEFT if is_rt else Side.RIGHT
        extent = self._extents[side][block] or self._new_extent(block, side)
        extent.begin(request.tail.end if request.tail is not None else 0, length, self.block_size)
        request.tail = extent
        request.extents.append(extent)
        self.room[block] -= length
        self.num_extents[block] += 1
        self.used_blocks[side] += 1
        if is_rt:
            self.has_left[block] = True
        elif self.room[block]:
            self.sharing.open_right(request, block)
        return extent

    def _new_extent(self, block: int, side: Side) -> Extent:
        extent = self._extents[side][block] = Extent(block, side, 0, 0, self.block_size)
        return extent

    def _take_free(self, num_blocks: int) -> list[int]:
        """Take blocks for new extents: free ones first, then idle ones."""
        free_blocks = self.free_blocks
        blocks = free_blocks[: -num_blocks - 1 : -1]
        del free_blocks[-num_blocks:]
        if len(blocks) < num_blocks:
            blocks += self._evict(num_blocks - len(blocks))
        assert len(blocks) == num_blocks, "free blocks were counted that do not exist"
        return blocks

    def _evict(self, num_blocks: int) -> list[int]:
        """Up to `num_blocks` idle blocks, whose content is forgotten."""
        evicted = self.prefix.evict(num_blocks)
        for block in evicted:
            self.room[block] = self.block_size
        return evicted

    def free_idle(self) -> None:
        """Free all idle blocks; the prefixes in them are forgotten."""
        self.free_blocks += self._evict(self.prefix.num_idle_blocks)

    def join(self, extent: Extent) -> None:
        """One more request holds the full block of this extent."""
        block, side = extent.block, extent.side
        if not self.num_extents[block]:
            self.prefix.take(extent)
            self.used_blocks[side] += 1
            self.has_left[block] = side is Side.LEFT
        self.num_extents[block] += 1

    # Shrinking ------------------------------------------------------------------------------------------

    def release(self, extents: Sequence[Extent]) -> None:
        """A request gives up these extents. The last one becomes free first."""
        size, room, num_extents, has_left = self.block_size, self.room, self.num_extents, self.has_left
        left, num_left, num_right = (
            Side.LEFT,
            0,
            0,
        )  # a local name: Python is slow to look up members of enums
        known: list[Extent] = []
        for extent in reversed(extents):
            block = extent.block
            others = num_extents[block] = num_extents[block] - 1
            if others and extent.length == size:
                continue  # other requests share this prefix
            if extent.side is left:
                num_left += 1
                has_left[block] = False
            else:
                num_right += 1
            if others:
                room[block] += extent.length
            elif extent.key is not None:
                room[block] = 0  # also if the block is not full: what it holds is not to be overwritten
                known.append(extent)
            else:
                room[block] = size
                self.free_blocks.append(block)
        self.prefix.keep(known)
        self.used_blocks[Side.LEFT] -= num_left
        self.used_blocks[Side.RIGHT] -= num_right
        self.sharing.release(extents)

    def shorten(self, request: Request, extent: Extent, length: int) -> None:
        """The only holder of an extent gives up its end."""
        self.prefix.forget(extent)
        self.room[extent.block] += extent.length - length
        extent.length = length
        extent.node = NO_NODE
        if extent.side is Side.RIGHT:
            self.sharing.shorten_right(request, extent.block)

    def is_alone(self, extent: Extent) -> bool:
        """Whether nothing else is in the extent's block."""
        return self.num_extents[extent.block] == 1

    def is_shared(self, extent: Extent) -> bool:
        """Whether other requests hold the same tokens in the same block, so that giving it up frees nothing."""
        return extent.length == self.block_size and self.num_extents[extent.block] > 1
