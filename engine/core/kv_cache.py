"""Who holds which KV slots. Pure bookkeeping: the runner moves the data.

Every block belongs to one request here and its tokens fill the block from their lane's side; a request that must make
room loses a suffix (`truncate`), never its whole self unless asked.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.blocks import Extent, slot_of, slots_of
from engine.core.request import Request
from engine.core.types import Lane, Side


class KVCacheManager:
    """Hands out slots of `num_blocks` blocks of `block_size` slots each. O(1) a block moved."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"KV memory needs at least one block of one slot, got {num_blocks} of {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free_blocks = list(range(num_blocks - 1, -1, -1))
        self._used_blocks = dict.fromkeys(Lane, 0)

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def num_free_blocks(self) -> int:
        return len(self._free_blocks)

    def room_tokens(self, request: Request) -> int:
        """How many tokens `extend` could place for this request right now."""
        last = request.extents[-1] if request.extents else None
        in_last = self.block_size - last.length if last else 0
        return in_last + len(self._free_blocks) * self.block_size

    def extend(self, request: Request, num_tokens: int) -> list[int] | None:
        """Slots for the request's next `num_tokens` tokens, in token order; None, and nothing changed, if they
        don't fit: the caller decides who makes room."""
        extents = request.extents
        size = self.block_size
        last = extents[-1] if extents else None
        if num_tokens == 1 and last is not None and last.length < size:
            last.length += 1
            return [slot_of(last.block, last.side, last.length - 1, size)]
        in_last = size - last.length if last else 0
        num_new_blocks = -(-(num_tokens - in_last) // size)
        if num_new_blocks > len(self._free_blocks):
            return None
        slots: list[int] = []
        if last is not None and in_last:
            taken = min(in_last, num_tokens)
            slots.extend(slots_of(last, last.length, last.length + taken, size))
            last.length += taken
        start = last.end if last else 0
        side = Side.of(request.lane)
        while len(slots) < num_tokens:
            extent = Extent(self._free_blocks.pop(), side, start, min(size, num_tokens - len(slots)))
            extents.append(extent)
            self._used_blocks[request.lane] += 1
            slots.extend(slots_of(extent, 0, extent.length, size))
            start = extent.end
        return slots

    def truncate(self, request: Request, num_tokens: int) -> int:
        """Keep the KV of the request's first `num_tokens` tokens only. Returns how many computed tokens it lost."""
        extents = request.extents
        while extents and extents[-1].start >= num_tokens:
            self._free_blocks.append(extents.pop().block)
            self._used_blocks[request.lane] -= 1
        if extents and extents[-1].end > num_tokens:
            extents[-1].length = num_tokens - extents[-1].start
        lost = max(0, request.num_computed_tokens - num_tokens)
        request.num_computed_tokens -= lost
        return lost

    def free(self, request: Request) -> None:
        """The request is over: all its slots are free."""
        self.truncate(request, 0)

    def slots(self, request: Request) -> list[int]:
        """The slots of all tokens the request holds KV for, in token order."""
        size = self.block_size
        return [s for extent in request.extents for s in slots_of(extent, 0, extent.length, size)]

    def usage(self) -> dict[Lane, int]:
        """Blocks in use, per lane."""
        return dict(self._used_blocks)

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Verify every invariant from scratch, given all requests that may hold KV. Raises AssertionError."""
        owner: dict[int, str] = {}
        used = dict.fromkeys(Lane, 0)
        for request in requests:
            position = 0
            for i, extent in enumerate(request.extents):
                assert extent.start == position, f"{request}: gap before {extent}"
                assert 0 < extent.length <= self.block_size, f"{request}: {extent} has an impossible length"
                full = extent.length == self.block_size
                assert full or i == len(request.extents) - 1, f"{request}: {extent} ends inside a block"
                assert extent.side is Side.of(request.lane), f"{request}: {extent} grows from the wrong side"
                assert extent.block not in owner, (
                    f"block {extent.block}: {owner.get(extent.block)} and {request}"
                )
                owner[extent.block] = request.request_id
                used[request.lane] += 1
                position = extent.end
            assert request.num_computed_tokens <= position, f"{request} has {position} slots"
        free = set(self._free_blocks)
        assert len(free) == len(self._free_blocks), "a block is free twice"
        assert free.isdisjoint(owner), "a block is both free and in use"
        assert len(free) + len(owner) == self.num_blocks, "a block is lost"
        assert used == self._used_blocks, f"usage says {self._used_blocks}, counted {used}"
