"""What BROS is measured against: the queue disciplines of servers that have no cost model.

A step is a fixed token budget, filled with the requests that run, in order, then with those that wait. Memory that runs
out is taken from the last in order, whole, to be computed again.
"""

from __future__ import annotations

import heapq
from operator import attrgetter

from engine.core.allocator import Memory
from engine.core.backlog import Running
from engine.core.batch import Batch
from engine.core.kv.cache import KVCacheManager
from engine.core.request import Request
from engine.core.terms import Lane, Policy


class BaselinePacker:
    """`PRIORITY`: RT before BE, each by age. `FCFS`: all by age."""

    def __init__(self, policy: Policy, running: Running, memory: Memory, kv: KVCacheManager) -> None:
        self._ranks = {Lane.RT: 0, Lane.BE: 0 if policy is Policy.FCFS else 1}
        self._running = running
        self._memory = memory
        self._kv = kv

    def sort_key(self, request: Request) -> tuple[float, float, int]:
        return self._ranks[request.lane], 0.0, request.order

    def enqueue(self, request: Request) -> None:
        """A request arrived."""
        self._running.waiting.push(request)

    def pack(self, batch: Batch) -> None:
        """Fill an empty batch."""
        running = self._running
        holders = [r.requests for lane in Lane for r in (running.behind[lane], running.decoding[lane])]
        for request in list(heapq.merge(*holders, key=attrgetter("sort_key"))):
            # One that lost everything comes in again like a new one.
            if request.tail is not None or (not batch.has_preempted and self._fits(request)):
                self._add(request, batch)
        while batch.tokens_left > 0 and not batch.has_preempted:
            waiting = running.waiting.peek()
            if waiting is None or not self._fits(waiting) or not self._memory.admit(waiting, batch):
                return
            self._add(waiting, batch)

    def _fits(self, request: Request) -> bool:
        return self._kv.num_free_blocks * self._kv.block_size >= request.num_uncomputed_tokens

    def _add(self, request: Request, batch: Batch) -> None:
        wanted = min(request.num_uncomputed_tokens, batch.tokens_left)
        slots = self._memory.take(request, wanted, batch) if wanted else []
        if slots:
            self._memory.count_computed(request, len(slots))
            batch.add(request, slots)
