"""The baselines for BROS: how servers without a cost model queue requests.

A step is a fixed token budget. It is filled with running requests in order, then with waiting ones. When memory runs
out, the last request in that order loses its memory and has to compute it again.
"""

from __future__ import annotations

import heapq
from operator import attrgetter

from engine.core.allocator import Allocator, VictimOrder
from engine.core.backlog import Backlog
from engine.core.batch import Batch
from engine.core.config import SchedulerConfig
from engine.core.cost_model import CostModel
from engine.core.kv.cache import KVCacheManager
from engine.core.policy.victims import OldestFirst, RtFirst
from engine.core.request import Request, State
from engine.core.terms import Lane, Policy


class FixedBudgetPolicy:
    """`PRIORITY`: RT before BE, each lane by age. `FCFS`: all requests by age. Neither reserves rows for a lane."""

    def __init__(self, config: SchedulerConfig, kv: KVCacheManager, cost: CostModel) -> None:
        is_fcfs = config.policy is Policy.FCFS
        self.backlog = Backlog(config.max_num_seqs, reserved_rt_rows=0, min_be_rows=0)
        victims: VictimOrder = (
            OldestFirst(kv, self.backlog) if is_fcfs else RtFirst(kv, self.backlog, config.max_preemptions)
        )
        self.allocator = Allocator(kv, self.backlog, cost, victims)
        self._ranks = {Lane.RT: 0, Lane.BE: 0 if is_fcfs else 1}
        self._kv = kv

    def sort_key(self, request: Request) -> tuple[float, float, int]:
        """By lane where lanes have ranks, then by age."""
        return self._ranks[request.lane], 0.0, request.order

    def enqueue(self, request: Request) -> None:
        """Put a request into the backlog."""
        self.backlog.add(request)

    def pack(self, batch: Batch) -> None:
        """Fill an empty batch up to its token budget."""
        backlog = self.backlog
        held = [r.requests for lane in Lane for r in (backlog.behind[lane], backlog.decoding[lane])]
        for request in list(heapq.merge(*held, key=attrgetter("sort_key"))):
            # A request that lost everything comes in again like a new one.
            if request.tail is not None or (not batch.has_preempted and self._fits(request)):
                self._compute(request, batch)
        while batch.tokens_left > 0 and not batch.has_preempted:
            waiting = backlog.waiting.peek()
            if waiting is None or not self._fits(waiting):
                return
            self._compute(waiting, batch)
            if waiting.state is State.WAITING:
                return  # there is no row for it

    def _compute(self, request: Request, batch: Batch) -> None:
        """Compute as much of the request as the budget allows. Whatever it lost is computed again."""
        self.allocator.compute(request, batch, float("inf"), restore=False, may_wait=True)

    def _fits(self, request: Request) -> bool:
        return self._kv.num_free_blocks * self._kv.block_size >= request.num_uncomputed_tokens
