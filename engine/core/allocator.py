"""Everything a request needs to be part of a step: a row, the tokens it has lost, and slots for its next tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from engine.core.backlog import Backlog
from engine.core.batch import Batch
from engine.core.cost_model import CostModel
from engine.core.kv.cache import KVCacheManager
from engine.core.request import Request, State
from engine.core.trim import trimmed

MAX_CHUNK_TOKENS = 1 << 30


class VictimOrder(Protocol):
    """Which request gives up memory for another. Each policy has its own order (`engine.core.policy.victims`)."""

    def choose(
        self, request: Request, missing: int, batch: Batch, *, has_room: bool, force: bool
    ) -> tuple[Request, int] | None:
        """The request that gives up memory because `request` lacks room for `missing` tokens, and how many tokens it
        gives up at least. None if there is no such request. `has_room`: there is room for some tokens. `force`: the
        request gets room at any cost, because nothing else can be computed."""
        ...


class Allocator:
    """Puts requests into batches, as far as rows, memory and time allow. The policy's victim order decides which
    requests make room for others."""

    def __init__(
        self,
        kv: KVCacheManager,
        backlog: Backlog,
        cost: CostModel,
        victims: VictimOrder,
        trims: tuple[int, ...] = (),
    ) -> None:
        """A step whose size is limited by time or by the budget is trimmed by the table `trims`."""
        self._trims = trims
        self._kv = kv
        self._backlog = backlog
        self._cost = cost
        self._victims = victims
        self.num_preemptions = 0
        self.num_truncated_tokens = 0
        self.num_restored_tokens = {"copy": 0, "recompute": 0, "prefix": 0}

    def decode(self, requests: list[Request], starts: list[int], batch: Batch) -> None:
        """Compute the last token of each of these decoding requests of one lane, as far as memory allows. `starts` are
        the positions of the tokens."""
        slots = self._kv.extend_each(requests)
        num_placed = len(slots)
        batch.add_singles(requests[:num_placed], starts[:num_placed], slots)
        for request in requests[num_placed:]:  # memory is full: each takes from others, or is left out
            if request.state is State.DECODING:
                found = self._reserve(request, 1, batch)
                batch.add_singles([request] * len(found), [request.num_computed_tokens] * len(found), found)

    def compute(
        self,
        request: Request,
        batch: Batch,
        limit_s: float,
        *,
        at_least: int = 0,
        at_most: int = MAX_CHUNK_TOKENS,
        restore: bool = True,
        force: bool = False,
        may_wait: bool = False,
    ) -> bool:
        """Compute the request's next tokens: as many as fit into memory and into a step of `limit_s`, but at least
        `at_least` regardless of the limit, and at most `at_most`. True if no token is left to compute, or
        if the request waits.

        A waiting request gets a row first. `restore`: tokens that the request has lost are restored, where that is
        possible and cheaper than computing them. `force`: see `VictimOrder.choose`. `may_wait`: if the step already
        computes the request's next block for another one that begins alike, the request waits for the next step, which
        finds the block. So it only waits while the other one gets on, and nobody waits for a request that is stopped.
        """
        is_new = request.state is State.WAITING
        if is_new and not self._give_row(request, batch):
            return False
        if is_new or (restore and request.num_lost_tokens):
            self._bring_back(request, batch, is_new=is_new, restore=restore)
        elif not request.num_lost_tokens:
            self._adopt(request, batch)
        if may_wait and batch.claims and self._kv.reuse.next_key(request) in batch.claims:
            return True
        if not force:  # it might then lose what has not been copied yet
            self._copy_beginning(request, batch)
        start, wanted = request.num_computed_tokens, request.num_uncomputed_tokens
        at_most = min(wanted, batch.tokens_left, at_most)
        count = self._cost.chunk_tokens(batch.shape, limit_s, start, at_most)
        if count < min(at_most, batch.min_chunk_tokens):
            count = 0
        elif count < wanted and self._trims:
            packed = batch.shape.tokens
            kept = trimmed(self._trims, packed + count) - packed
            count = kept if kept >= batch.min_chunk_tokens else count
        count = max(count, min(at_most, at_least))
        if count <= 0:
            return False
        slots = self._reserve(request, count, batch, force=force)
        if not slots:
            return False
        if request.num_lost_tokens:
            self._count_restored(request, "recompute", min(request.num_lost_tokens, len(slots)))
        if request.state is State.BEHIND and (key := self._kv.reuse.claim(request)) is not None:
            batch.claims.add(key)
        batch.add(request, slots)
        return len(slots) == wanted

    def _give_row(self, request: Request, batch: Batch) -> bool:
        """Give a waiting request a row. False if there is none, or if the request lost its row while its last token is
        being drawn: the runner has to know all tokens when a row starts."""
        is_known = request.num_known_tokens == request.num_tokens
        return is_known and self._backlog.give_row(request, batch.number)

    def _bring_back(self, request: Request, batch: Batch, *, is_new: bool, restore: bool) -> None:
        """Restore tokens without computing them: first from the prefix cache, then from copies on the host."""
        kv, start = self._kv, request.num_computed_tokens
        found = kv.reuse.match(request)
        holds_some = found > 0 or (is_new and request.tail is not None)
        known = kv.slots(request, 0 if is_new else start) if holds_some else []
        if request.first_scheduled_s is None:
            request.first_scheduled_s = batch.now_s
            request.num_cached_tokens = found
        elif found:
            self._count_restored(request, "prefix", found)
        slots: list[int] = []
        num_saved = kv.host.restorable(request) if restore and request.num_lost_tokens else 0
        if num_saved and self._cost.is_copy_cheaper(start + found, num_saved):
            slots, host_slots = kv.restore_copies(request, num_saved, batch.number)
        if is_new:
            batch.start_row(request, known)
        elif found:
            batch.restore(request, start, known, [])
        if slots:
            batch.restore(request, start + found, slots, host_slots)
            self._count_restored(request, "copy", len(slots))

    def _adopt(self, request: Request, batch: Batch) -> None:
        """Take over what others with the same beginning have computed since the request began."""
        computed = request.num_computed_tokens
        adopted = self._kv.adopt(request)
        if adopted is not None:
            batch.restore(request, *adopted, [])
            if not request.num_output_tokens:
                request.num_cached_tokens += request.num_computed_tokens - computed

    def _copy_beginning(self, request: Request, batch: Batch) -> None:
        """Copy the start of the request's next block from a block that begins alike: the end of a document with the
        beginning of another question, for example."""
        start = request.num_computed_tokens
        copied = self._kv.copy_beginning(request)
        if copied is None:
            return
        batch.copy_beginning(request, start, *copied)
        num_tokens = request.num_computed_tokens - start
        if request.num_lost_tokens:
            self._count_restored(request, "prefix", min(request.num_lost_tokens, num_tokens))
        elif not request.num_output_tokens:
            request.num_cached_tokens += num_tokens

    def _count_restored(self, request: Request, how: str, num_tokens: int) -> None:
        request.num_lost_tokens = max(0, request.num_lost_tokens - num_tokens)
        self.num_restored_tokens[how] += num_tokens

    def _reserve(self, request: Request, num_tokens: int, batch: Batch, *, force: bool = False) -> list[int]:
        """Slots for the request's next `num_tokens` tokens, preempting victims; fewer slots when no victim is left."""
        while (slots := self._kv.extend(request, num_tokens)) is None:
            room = self._kv.room_tokens(request, num_tokens)
            chosen = self._victims.choose(request, num_tokens - room, batch, has_room=room > 0, force=force)
            if chosen is None:
                return (self._kv.extend(request, room) or []) if room else []
            self._preempt(*chosen, batch)
        return slots

    def _preempt(self, victim: Request, num_tokens: int, batch: Batch) -> None:
        if not victim.num_lost_tokens:  # a victim that has not caught up is still in its last preemption
            self.num_preemptions += 1
            victim.num_preemptions += 1
        lost = self._kv.reclaim(victim, num_tokens, batch.number)
        batch.has_preempted = True
        victim.num_lost_tokens += lost
        self.num_truncated_tokens += lost
        self._backlog.fall_behind(victim)

    def lose_all(self, requests: Collection[Request]) -> None:
        """The runner has lost everything: KV, copies, prefixes, and the tokens that were being drawn."""
        for request in requests:
            request.forget_unknown()
            num_lost = request.num_lost_tokens + request.num_computed_tokens
            request.num_lost_tokens = min(num_lost, request.num_tokens)
            request.is_sheltered = False
        self._kv.lose_all(requests)
