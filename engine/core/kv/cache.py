"""Who holds which KV slots. Pure bookkeeping: plans carry the copies, the runner moves the data.

A block has two sides. RT fills blocks from the left, BE from the right, and a block may hold one extent of each:

    block 7:  [ RT RT RT RT  .  .  .  .  .  .  . BE BE BE BE BE ]     room: 7 slots, for whichever comes first

Preemption is truncation: RT grows on over BE's newest tokens, so what BE loses is a suffix, copied to the host before
it is overwritten. A request never holds less than a prefix of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.extent import NO_NODE, Extent
from engine.core.kv.host import HostPool
from engine.core.kv.pool import BlockPool
from engine.core.plan import SlotCopy
from engine.core.request import Request
from engine.core.terms import Checkpoint, Lane, Preemption, Side

# Truncation takes this many slots at least: a victim loses its next tokens in any case, and each time costs a copy.
QUANTUM_TOKENS = 4


@dataclass(frozen=True, slots=True)
class KVOptions:
    """What the manager may do; each can be switched off to measure what it brings.

    `sharing`: RT may use the free middle of BE's blocks. `num_host_slots`: tokens whose copies host memory holds.
    """

    sharing: bool = True
    preemption: Preemption = Preemption.TRUNCATE
    checkpoint: Checkpoint = Checkpoint.LAZY
    prefix_cache: bool = True
    num_host_slots: int = 0


class KVCacheManager:
    """Hands out slots of `num_blocks` blocks of `block_size` slots each. O(1) a block moved."""

    def __init__(self, num_blocks: int, block_size: int, options: KVOptions | None = None) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"KV memory needs at least one block of one slot, got {num_blocks} of {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.options = options or KVOptions()
        self.pool = BlockPool(num_blocks, block_size)
        self.prefix = self.pool.prefix
        self.host = HostPool(0 if self.options.checkpoint is Checkpoint.NONE else self.options.num_host_slots)
        self.copies_out: list[SlotCopy] = []  # for the next plan to take
        self.num_saved_tokens = 0

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def num_free_blocks(self) -> int:
        """Blocks to be had without taking anything from a request."""
        return self.pool.num_free

    def usage(self) -> dict[Lane, int]:
        """Blocks with tokens of each lane in them; a block may count for both."""
        return {lane: self.pool.used_blocks[Side.of(lane)] for lane in Lane}

    # Getting slots --------------------------------------------------------------------------------------

    def extend_each(self, requests: Sequence[Request]) -> list[int]:
        """A slot for the next token of each, in their order, up to the first for which there is none."""
        room = self.pool.room
        slots: list[int] = []
        for request in requests:
            tail = request.tail
            if tail is not None:
                length = tail.length
                if length < tail.limit and room[tail.block]:
                    room[tail.block] -= 1
                    slots.append(tail.origin + length * tail.stride)
                    tail.length = length + 1
                    continue
            self.commit(request)
            if tail is not None and length == tail.limit and self.pool.num_free:
                slots.append(self.pool.open_next(request))
                continue
            found = self.extend(request, 1)
            if found is None:
                break
            slots += found
        return slots

    def extend(self, request: Request, num_tokens: int) -> list[int] | None:
        """Slots for the request's next `num_tokens` tokens, in token order; None, and nothing changed, if they don't
        fit: the caller decides who makes room.

        Looks in the request's own last extent, then for free blocks, then, for RT, into the middle of BE's blocks.
        """
        pool, size, tail = self.pool, self.block_size, request.tail
        in_tail = 0
        if tail is not None:
            in_tail = min(tail.limit - tail.length, pool.room[tail.block], num_tokens)
        end = (tail.end if tail is not None else 0) + num_tokens
        num_new = -(-end // size) - (end - num_tokens + in_tail) // size if in_tail < num_tokens else 0
        if num_new > pool.num_free:
            return self._extend_in_middles(request, num_tokens)
        slots: list[int] = []
        if tail is not None and in_tail:
            slots += tail.slots(tail.length, tail.length + in_tail)
            tail.length += in_tail
            pool.room[tail.block] -= in_tail
        if num_new:
            slots += pool.open_fresh(request, num_tokens - in_tail)
        return slots

    def _extend_in_middles(self, request: Request, num_tokens: int) -> list[int] | None:
        """`extend` where there are too few free blocks."""
        placed = self._place(request, num_tokens)
        if sum(length for _, length in placed) < num_tokens:
            return None
        slots: list[int] = []
        for block, length in placed:
            tail = request.tail
            if block < 0:
                slots += self.pool.open_fresh(request, length)
                continue
            if tail is None or block != tail.block:
                tail = self.pool.open_middle(request, block)
            first = tail.length
            tail.length += length
            self.pool.room[tail.block] -= length
            slots += tail.slots(first, tail.length)
        return slots

    def room_tokens(self, request: Request, at_most: int) -> int:
        """How many of `at_most` tokens `extend` could place for this request right now."""
        return sum(length for _, length in self._place(request, at_most))

    def _place(self, request: Request, num_tokens: int) -> list[tuple[int, int]]:
        """(block, tokens) for as many of the next tokens as there is room for; -1 stands for a block from the free."""
        placed: list[tuple[int, int]] = []
        tail, size = request.tail, self.block_size
        position = tail.end if tail is not None else 0
        if tail is not None:
            taken = min(tail.limit - tail.length, self.pool.room[tail.block], num_tokens)
            if taken:
                placed.append((tail.block, taken))
                num_tokens -= taken
                position += taken
        num_free = self.num_free_blocks
        while num_tokens and num_free:
            taken = min(size - position % size, num_tokens)
            placed.append((-1, taken))
            num_free -= 1
            num_tokens -= taken
            position += taken
        if num_tokens and request.lane is Lane.RT and self.options.sharing:
            for block in self.pool.shareable():
                taken = min(self.pool.room[block], size - position % size, num_tokens)
                placed.append((block, taken))
                num_tokens -= taken
                position += taken
                if not num_tokens:
                    break
        return placed

    # Giving slots back ----------------------------------------------------------------------------------

    def truncate(self, request: Request, num_tokens: int) -> int:
        """Keep the KV of the request's first `num_tokens` tokens at most: blocks found in the prefix cache are given up
        whole. Returns how many computed tokens it lost."""
        extents = request.extents
        if num_tokens == 0:
            self.pool.release(extents)
            extents.clear()
        while extents and (
            extents[-1].start >= num_tokens
            or (extents[-1].end > num_tokens and self._is_indivisible(request, extents[-1]))
        ):
            self.pool.release([extents.pop()])
        tail = request.tail = extents[-1] if extents else None
        if tail is not None and tail.end > num_tokens:
            self.pool.shorten(request, tail, num_tokens - tail.start)
            tail.node = NO_NODE
        request.num_chunks = min(request.num_chunks, len(extents))
        if tail is not None and request.num_chunks == len(extents) and tail.node == NO_NODE:
            request.num_chunks = max(0, request.num_chunks - 1)
        kept = tail.end if tail is not None else 0
        lost = max(0, request.num_computed_tokens - kept)
        request.num_computed_tokens -= lost
        return lost

    def reclaim(self, victim: Request, num_tokens: int, step: int) -> int:
        """Take `num_tokens` of the victim's newest tokens, and a few more, or all of it where preemption is whole.
        What it lost is saved first where checkpoints are kept. Returns how many computed tokens it lost."""
        computed = victim.num_computed_tokens
        keep = 0
        if self.options.preemption is not Preemption.WHOLE:
            quantum = min(QUANTUM_TOKENS, self.block_size)
            keep = max(0, computed - -(-num_tokens // quantum) * quantum)
            keep = self._start_of_prefix(victim, keep)
        if self.host.num_slots:
            self._save(victim, keep, computed, step)
        return self.truncate(victim, keep)

    def free(self, request: Request) -> None:
        """The request is over: all its slots and copies are free, last block first, so that of a cached prefix its
        end is evicted before its beginning."""
        self.commit(request)
        self.truncate(request, 0)
        self.host.free(request)

    def _is_indivisible(self, request: Request, extent: Extent) -> bool:
        """Whether the request can only give up all of it: others read it, or it grew from the other lane's side."""
        return self.pool.is_shared(extent) or extent.side is not Side.of(request.lane)

    def _start_of_prefix(self, request: Request, num_tokens: int) -> int:
        """Where a truncation to `num_tokens` really ends: some blocks are given up whole."""
        for extent in reversed(request.extents):
            if extent.end <= num_tokens:
                break
            if extent.start < num_tokens and self._is_indivisible(request, extent):
                return extent.start
        return num_tokens

    # Copies and prefixes --------------------------------------------------------------------------------

    def _save(self, request: Request, start: int, end: int, step: int) -> None:
        copies = self.host.save(request, start, self.slots(request, start, end), step)
        if copies is not None:
            self.copies_out.append(copies)
            self.num_saved_tokens += len(copies.host_slots)

    def commit(self, request: Request) -> None:
        """Make the request's full blocks of computed tokens known to the prefix cache."""
        if not self.options.prefix_cache:
            return
        extents, size, ids = request.extents, self.block_size, request.token_ids
        num_known = min(request.num_computed_tokens, request.num_known_tokens)
        first = last = request.num_chunks
        while last < len(extents) and extents[last].length == size and extents[last].end <= num_known:
            last += 1
        if first < last:
            parent = extents[first - 1].node if first else NO_NODE
            chunks = extents[first:last]
            self.prefix.insert(parent, ids[chunks[0].start : chunks[-1].end], chunks)
            request.num_chunks = last

    def match_prefix(self, request: Request) -> int:
        """Take over cached blocks that continue what the request has computed, all but its last token at most.
        Returns how many tokens they hold."""
        extents, size = request.extents, self.block_size
        start = position = request.num_computed_tokens
        if not self.options.prefix_cache or request.num_chunks < len(extents) or position % size:
            return 0
        parent = extents[-1].node if extents else NO_NODE
        while position + size < request.num_tokens:
            found = self.prefix.find(parent, request.token_ids[position : position + size])
            if found is None:
                break
            parent = found.node
            self.pool.join(found)
            extents.append(found)
            position += size
        if position > start:
            request.tail = extents[-1]
            request.num_chunks = len(extents)
            request.num_computed_tokens = position
        self.prefix.num_queried_tokens += request.num_tokens - start
        self.prefix.num_hit_tokens += position - start
        return position - start

    def slots(self, request: Request, start: int = 0, end: int | None = None) -> list[int]:
        """The slots of the request's tokens [start, end), of all it holds by default, in token order."""
        slots: list[int] = []
        for extent in reversed(request.extents):
            last = extent.end if end is None else min(end, extent.end)
            first = max(start, extent.start)
            if first < last:
                slots.extend(reversed(extent.slots(first - extent.start, last - extent.start)))
            if extent.start <= start:
                break
        slots.reverse()
        return slots

    def neighbour(self, request: Request) -> Request | None:
        """The BE request in whose block this RT request grows: whose tokens it would take next."""
        tail = request.tail
        return self.pool.be_holder[tail.block] if tail is not None and tail.length < tail.limit else None
