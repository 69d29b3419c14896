"""Two-sided blocks: RT may grow in the free middle of a block that BE fills from the other end.

    block 7:  [ RT RT RT RT  .  .  .  .  .  .  . BE BE BE BE BE ]     room: 7 slots, first come, first served

Everything that exists only because two lanes can share a block is in this file. The pool reports what happens on the
sides of its blocks; in return, `middles` says where RT finds room, and `neighbor` against whom it grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress

from engine.core.extent import Extent
from engine.core.request import Request
from engine.core.terms import Side


class BlockSharing:
    """Which blocks of BE have room for RT on their left side. `room` and `has_left` are the pool's own lists: the free
    slots of each block, and whether its left side is taken."""

    def __init__(self, block_size: int, room: list[int], has_left: list[bool], *, is_enabled: bool) -> None:
        self._block_size = block_size
        self._room = room
        self._has_left = has_left
        self._is_enabled = is_enabled
        # The BE request that grows on the right side of each block. None if the right side is free; for a full block
        # it says nothing.
        self._growing: list[Request | None] = [None] * len(room)
        self._candidates: dict[int, None] = {}  # blocks that may have room for RT, checked when they come up

    # Reports of the pool --------------------------------------------------------------------------------

    def open_right(self, request: Request, block: int) -> None:
        """A BE request has opened the block and left room in it."""
        self._growing[block] = request
        self._candidates[block] = None

    def shorten_right(self, request: Request, block: int) -> None:
        """A BE request has given up the end of its extent in the block."""
        self._growing[block] = request  # another one that shared the block may have opened it
        if not self._has_left[block]:
            self._candidates.pop(block, None)
            self._candidates[block] = None  # last in, first looked at

    def release(self, extents: Sequence[Extent]) -> None:
        """A request has released these extents."""
        right, growing = Side.RIGHT, self._growing
        for extent in reversed(extents):
            block = extent.block
            if extent.side is right:
                growing[block] = None
            elif growing[block] is not None:
                self._candidates[block] = None

    # Room for RT ----------------------------------------------------------------------------------------

    def middles(self, position: int, num_tokens: int) -> list[tuple[int, int]]:
        """(block, number of tokens) pairs that place up to `num_tokens` tokens of an RT request, from `position` on,
        in the middles of BE's blocks."""
        placed: list[tuple[int, int]] = []
        if not self._is_enabled or not num_tokens:
            return placed
        size = self._block_size
        for block in self._open_blocks():
            taken = min(self._room[block], size - position % size, num_tokens)
            placed.append((block, taken))
            num_tokens -= taken
            position += taken
            if not num_tokens:
                break
        return placed

    def _open_blocks(self) -> Iterator[int]:
        """The blocks whose left side RT may take, newest first: those have the most room."""
        stale = []
        try:
            for block in reversed(self._candidates):
                holder = self._growing[block]
                if not self.is_open(block):
                    stale.append(block)
                elif holder is None or not holder.is_sheltered:
                    yield block
        finally:
            for block in stale:
                del self._candidates[block]

    def is_open(self, block: int) -> bool:
        """Whether BE holds the block alone and has left room in it."""
        return 0 < self._room[block] < self._block_size and not self._has_left[block]

    # Who shares with whom -------------------------------------------------------------------------------

    def neighbor(self, request: Request) -> Request | None:
        """The BE request in whose block an RT request grows, and whose tokens it would take next."""
        tail = request.tail
        return self._growing[tail.block] if tail is not None and tail.length < tail.limit else None

    def right_lengths(self) -> dict[int, int]:
        """BE's tokens in each block that both lanes hold, by block."""
        return {
            block: next(extent.length for extent in reversed(holder.extents) if extent.block == block)
            for block, holder in compress(enumerate(self._growing), self._has_left)
            if holder is not None
        }

    def check_integrity(self, block: int, left: Request | None, right: Request | None) -> None:
        """Verify a block that is not full, given who grows on its sides. Raises AssertionError."""
        noted = self._growing[block]
        assert noted is right, f"block {block}: {right} grows on its right side, but {noted} is noted"
        assert right is None or left is not None or not self._room[block] or block in self._candidates, (
            f"block {block}: RT could take its middle, but it is no candidate"
        )
