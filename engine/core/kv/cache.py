"""Which request holds which KV slots. Bookkeeping only: plans carry the copies, and the runner moves the data.

A request holds a list of extents, each on one side of a block: RT fills blocks from the left, BE from the right.

Preemption is truncation: a victim gives up its newest tokens, so what it keeps is always a prefix. What it gives up is
copied to the host before it is overwritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.core.extent import NO_NODE, Extent
from engine.core.kv.host import HostPool
from engine.core.kv.pool import BlockPool
from engine.core.kv.reuse import PrefixReuse
from engine.core.plan import SlotCopy
from engine.core.request import Request
from engine.core.terms import Checkpoint, Lane, Preemption, Side

# A truncation takes at least this many slots: the victim will lose the next tokens anyway, and each time costs a copy.
QUANTUM_TOKENS = 4


@dataclass(frozen=True, slots=True)
class KVOptions:
    """The features of the KV memory. Each can be switched off to measure its effect.

    `sharing`: RT may use the free middle of BE's blocks. `num_host_slots`: number of tokens whose copies host memory
    can hold.
    """

    sharing: bool = True
    preemption: Preemption = Preemption.TRUNCATE
    checkpoint: Checkpoint = Checkpoint.LAZY
    prefix_cache: bool = True
    num_host_slots: int = 0


class KVCacheManager:
    """Hands out the slots of `num_blocks` blocks of `block_size` slots each, in O(1) per block moved."""

    def __init__(self, num_blocks: int, block_size: int, options: KVOptions | None = None) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"KV memory needs at least one block of one slot, got {num_blocks} of {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.options = options or KVOptions()
        self.pool = BlockPool(num_blocks, block_size, sharing=self.options.sharing)
        self.prefix = self.pool.prefix
        self.reuse = PrefixReuse(self.pool, is_enabled=self.options.prefix_cache)
        self.host = HostPool(0 if self.options.checkpoint is Checkpoint.NONE else self.options.num_host_slots)
        self.copies_out: list[SlotCopy] = []  # for the next plan
        self.num_saved_tokens = 0

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def num_free_blocks(self) -> int:
        """Number of blocks that can be had without taking anything from a request."""
        return self.pool.num_free

    def usage(self) -> dict[Lane, int]:
        """Number of blocks that hold tokens of each lane; a block may count for both."""
        return {lane: self.pool.used_blocks[Side.of(lane)] for lane in Lane}

    # Getting slots --------------------------------------------------------------------------------------

    def extend_each(self, requests: Sequence[Request]) -> list[int]:
        """A slot for the next token of each request, in their order, up to the first request for which there is no
        room."""
        pool = self.pool
        slots: list[int] = []
        remaining = iter(requests)
        while (request := pool.grow_each(remaining, slots)) is not None:
            self.reuse.commit(request)
            tail = request.tail
            if tail is not None and tail.length == tail.limit and (pool.free_blocks or pool.num_free):
                slots.append(pool.open_next(request))
                continue
            found = self.extend(request, 1)
            if found is None:
                break
            slots += found
        return slots

    def extend(self, request: Request, num_tokens: int) -> list[int] | None:
        """Slots for the request's next `num_tokens` tokens, in token order. None, and nothing is changed, if they do
        not fit: the caller decides which request makes room.

        They come from the request's own last extent, then from free blocks, then, for RT, from the middles of BE's
        blocks.
        """
        pool, size, tail = self.pool, self.block_size, request.tail
        in_tail = min(self._room_in_tail(request), num_tokens)
        first = (tail.end if tail is not None else 0) + in_tail  # that needs another block
        num_fresh = num_tokens - in_tail
        middles: list[tuple[int, int]] = []
        if num_fresh and -(-(first + num_fresh) // size) - first // size > pool.num_free:
            wanted, num_fresh = num_fresh, self._room_in_free_blocks(first)
            middles = self._middles(request, first + num_fresh, wanted - num_fresh)
            if num_fresh + sum(length for _, length in middles) < wanted:
                return None
        slots: list[int] = []
        if tail is not None and in_tail:
            slots += pool.grow(tail, in_tail)
        if num_fresh:
            slots += pool.open_fresh(request, num_fresh)
        for block, length in middles:
            slots += pool.open_middle(request, block, length)
        return slots

    def room_tokens(self, request: Request, at_most: int) -> int:
        """How many of `at_most` tokens `extend` could place for this request now."""
        found = self._room_in_tail(request)
        first = (request.tail.end if request.tail is not None else 0) + found
        in_free_blocks = self._room_in_free_blocks(first)
        found += in_free_blocks
        if found < at_most:
            middles = self._middles(request, first + in_free_blocks, at_most - found)
            found += sum(length for _, length in middles)
        return min(found, at_most)

    def _room_in_tail(self, request: Request) -> int:
        """How many more tokens the request's last extent can hold."""
        tail = request.tail
        return min(tail.limit - tail.length, self.pool.room[tail.block]) if tail is not None else 0

    def _room_in_free_blocks(self, first: int) -> int:
        """How many tokens from number `first` on the free blocks can hold."""
        num_free = self.pool.num_free
        return num_free * self.block_size - first % self.block_size if num_free else 0

    def _middles(self, request: Request, first: int, num_tokens: int) -> list[tuple[int, int]]:
        """Where tokens from number `first` on find room in the middles of BE's blocks: (block, number of tokens)."""
        return self.pool.sharing.middles(first, num_tokens) if request.lane is Lane.RT else []

    # Giving slots back ----------------------------------------------------------------------------------

    def truncate(self, request: Request, num_tokens: int) -> int:
        """Keep the KV of at most the first `num_tokens` tokens: blocks found in the prefix cache are only given up
        whole. Returns how many computed tokens the request has lost."""
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
        request.num_cached_extents = min(request.num_cached_extents, len(extents))
        if tail is not None and request.num_cached_extents == len(extents) and tail.node == NO_NODE:
            request.num_cached_extents = max(0, request.num_cached_extents - 1)
        kept = tail.end if tail is not None else 0
        lost = max(0, request.num_computed_tokens - kept)
        request.num_computed_tokens -= lost
        return lost

    def reclaim(self, victim: Request, num_tokens: int, step: int) -> int:
        """Take the victim's newest `num_tokens` tokens and a few more, or all of them if preemption is WHOLE. They are
        saved first if checkpoints are kept. Returns how many computed tokens the victim has lost."""
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
        """Free all slots and copies of a request that has ended. The last block is freed first, so that the end of a
        cached prefix is evicted before its beginning."""
        self.reuse.commit(request)
        self.reuse.commit_end(request)
        self.truncate(request, 0)
        self.host.free(request)

    def lose_all(self, requests: Iterable[Request]) -> None:
        """Forget all KV, copies and prefixes: the runner no longer has them."""
        for request in requests:
            self.truncate(request, 0)
            self.host.free(request)
        self.pool.free_idle()

    def _is_indivisible(self, request: Request, extent: Extent) -> bool:
        """Whether the request can only give up the whole extent: others read it, or it grew from the other side."""
        return self.pool.is_shared(extent) or extent.side is not Side.of(request.lane)

    def _start_of_prefix(self, request: Request, num_tokens: int) -> int:
        """Where a truncation to `num_tokens` ends, given that some blocks are only given up whole."""
        for extent in reversed(request.extents):
            if extent.end <= num_tokens:
                break
            if extent.start < num_tokens and self._is_indivisible(request, extent):
                return extent.start
        return num_tokens

    # Copies, and blocks of others -----------------------------------------------------------------------

    def take_copies_out(self) -> list[SlotCopy]:
        """The copies that the next plan carries out before anything else."""
        copies, self.copies_out = self.copies_out, []
        return copies

    def _save(self, request: Request, start: int, end: int, step: int) -> None:
        copies = self.host.save(request, start, self.slots(request, start, end), step)
        if copies is not None:
            self.copies_out.append(copies)
            self.num_saved_tokens += len(copies.host_slots)

    def restore_copies(self, request: Request, num_saved: int, step: int) -> tuple[list[int], list[int]]:
        """Slots for up to `num_saved` of the next tokens, which have copies, and the host slots of those copies. The
        tokens count as computed."""
        slots = self.extend(request, self.room_tokens(request, num_saved)) or []
        host_slots = self.host.read(request, len(slots), step) if slots else []
        request.num_computed_tokens += len(slots)
        return slots, host_slots

    def adopt(self, request: Request) -> tuple[int, list[int]] | None:
        """Take over blocks that others computed since the request began, in place of the part of the first of them that
        it has computed itself. Returns the position of their first token and their slots, or None if there are none."""
        key = self.reuse.next_key(request)
        if key is None or not self.prefix.knows(key):
            return None
        start, computed = request.num_cached_extents * self.block_size, request.num_computed_tokens
        self.truncate(request, start)
        at_most = None if request.reading is None else request.reading.num_skippable_tokens
        self.reuse.join(
            request, self.prefix.follow(key[0], request.token_ids, start, self.block_size, at_most)
        )
        self.prefix.num_hit_tokens += request.num_computed_tokens - computed
        return start, self.slots(request, start)

    def copy_beginning(self, request: Request) -> tuple[list[int], list[int]] | None:
        """Slots for the next tokens of a request that is at the start of a block, as far as a known block begins with
        the same tokens, and that block's slots, to copy them from. The tokens count as computed. None if no block
        begins alike, or if there is no free room.

        The copy has to be carried out before the step computes anything, in the order of what the step restores: the
        known block may be evicted, even for these slots.
        """
        extents, size, start = request.extents, self.block_size, request.num_computed_tokens
        if not self.options.prefix_cache or request.num_cached_extents < len(extents) or start % size:
            return None
        at_most = None if request.reading is None else request.reading.num_skippable_tokens
        end = len(request.token_ids) - 1 if at_most is None else min(at_most, len(request.token_ids) - 1)
        parent = extents[-1].node if extents else NO_NODE
        begins_alike = self.prefix.beginning(
            parent, request.token_ids[start : min(end, start + size)], self.reuse.least_copied_tokens
        )
        if begins_alike is None:
            return None
        known, pool = list(begins_alike), self.pool
        if pool.num_free:
            slots: list[int] | None = pool.open_one(request, len(known))
        else:
            slots = self.extend(request, len(known))
        if slots is None:
            return None
        request.num_computed_tokens += len(slots)
        self.prefix.num_hit_tokens += len(slots)
        return slots, known

    def slots(self, request: Request, start: int = 0, end: int | None = None) -> list[int]:
        """The slots of the request's tokens [start, end), by default of all it holds, in token order."""
        extents = request.extents
        index = len(extents)
        while index and extents[index - 1].end > start:
            index -= 1
        slots: list[int] = []
        for extent in extents[index:]:
            first = max(start - extent.start, 0)
            last = extent.length if end is None else min(end - extent.start, extent.length)
            if first < last:
                slots += extent.slots(first, last)
        return slots
