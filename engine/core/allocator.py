"""Slots for a request's next tokens, and who loses some when there are none."""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.backlog import Running
from engine.core.batch import Batch
from engine.core.cost_model import CostModel
from engine.core.kv.cache import KVCacheManager
from engine.core.request import Request, State
from engine.core.terms import Lane, Preemption


class Memory:
    """Nobody in a step's plan loses anything to that step. RT takes from BE, the latest to arrive first; within a lane
    the older takes from the younger (and across lanes, without `rt_first`).

    A request preempted `max_preemptions` times is spared while there are others, and the most urgent of BE then in any
    case: so every BE request comes to its end.
    """

    def __init__(
        self,
        kv: KVCacheManager,
        running: Running,
        cost: CostModel,
        max_preemptions: int,
        rt_first: bool,
    ) -> None:
        self._kv = kv
        self._running = running
        self._cost = cost
        self._max_preemptions = max_preemptions
        self._rt_first = rt_first
        self._last_victim: Request | None = None
        self._sheltered: Request | None = None
        self.num_preemptions = 0
        self.num_truncated_tokens = 0
        self.num_restored_tokens = {"copy": 0, "recompute": 0, "prefix": 0}

    def take(
        self, request: Request, wanted: int, batch: Batch, *, may_preempt: bool = True, force: bool = False
    ) -> list[int]:
        """Slots for the request's next `wanted` tokens, or for as many as can be had, at the cost of others unless it
        may not preempt. `force`: at anybody's cost, where no one else can move either; see `sheltered`."""
        slots = self._kv.extend(request, wanted)
        while slots is None:
            room = self._kv.room_tokens(request, wanted)
            victim = self._victim(request, batch.number) if may_preempt else None
            if victim is None and force and self.sheltered in (None, request):
                victim = self._anybody(request, batch.number)
                if victim is None and not room and not batch.shape.rows and request.tail is not None:
                    victim = request  # its own short extents keep it from fitting: it begins again
                if victim is not None:
                    self._sheltered = request
                    request.is_sheltered = True
            if victim is None:
                return (self._kv.extend(request, room) or []) if room else []
            self._reclaim(victim, request, wanted - room, batch)
            slots = self._kv.extend(request, wanted)
        return slots

    @property
    def sheltered(self) -> Request | None:
        """The request that was forced on others. Until it ends nobody takes from it, and no other is forced: else two
        of them could take the same memory from each other for ever."""
        if self._sheltered is not None and self._sheltered.state in (State.ENDING, State.DONE):
            self._sheltered = None
        return self._sheltered

    def lose_all(self, requests: Iterable[Request]) -> None:
        """The runner has nothing of anybody any more: no K and V, no copies, no prefixes, no tokens being drawn."""
        for request in requests:
            request.forget_unknown()
            num_lost = request.num_lost_tokens + self._kv.truncate(request, 0)
            request.num_lost_tokens = min(num_lost, request.num_tokens)
            request.is_sheltered = False
            self._kv.host.free(request)
        self._kv.pool.free_idle()
        self._sheltered = None

    def admit(self, request: Request, batch: Batch) -> bool:
        """Gives a waiting request a row, and what the prefix cache has of it. False if there is no row, or the request
        lost its own while its last token is being drawn: the runner needs to know all of them."""
        if request.num_known_tokens < request.num_tokens or not self._running.give_row(request, batch.number):
            return False
        found = self._kv.match_prefix(request)
        if request.first_scheduled_s is None:
            request.first_scheduled_s = batch.now_s
            request.num_cached_tokens = found
        elif found:
            self._count_restored(request, "prefix", found)
        batch.start_row(request, self._kv.slots(request))
        return True

    def catch_up(self, request: Request, batch: Batch) -> None:
        """Brings back, without computing them, what can be of the tokens a running request lost."""
        if not request.num_lost_tokens:
            return
        before = request.num_computed_tokens
        found = self._kv.match_prefix(request)
        if found:
            batch.restore(request, before, self._kv.slots(request, before), [])
            self._count_restored(request, "prefix", found)
        saved = self._kv.host.restorable(request)
        if not saved or not self._cost.is_copy_cheaper(request.num_computed_tokens, saved):
            return
        slots = self._kv.extend(request, min(saved, self._kv.room_tokens(request, saved)))
        if slots:
            host_slots = self._kv.host.read(request, len(slots), batch.number)
            batch.restore(request, request.num_computed_tokens, slots, host_slots)
            request.num_computed_tokens += len(slots)
            self._count_restored(request, "copy", len(slots))

    def count_computed(self, request: Request, num_tokens: int) -> None:
        """A step computes these tokens; some of them for the second time."""
        again = min(request.num_lost_tokens, num_tokens)
        if again:
            self._count_restored(request, "recompute", again)

    def _count_restored(self, request: Request, how: str, num_tokens: int) -> None:
        request.num_lost_tokens = max(0, request.num_lost_tokens - num_tokens)
        self.num_restored_tokens[how] += num_tokens

    # Victims --------------------------------------------------------------------------------------------

    def _victim(self, request: Request, step: int) -> Request | None:
        if not self._rt_first:
            return self._younger(Lane.BE, step, request) or self._younger(Lane.RT, step, request)
        victim = self._be_victim(request, step) if request.lane is Lane.RT else None
        return victim or self._younger(request.lane, step, request)

    def _anybody(self, request: Request, step: int) -> Request | None:
        """Who loses to a forced request: of BE, then of RT, the least urgent."""
        held = [
            *self._be_least_urgent_first(),
            *reversed(self._running.behind[Lane.RT].requests),
            *reversed(self._running.decoding[Lane.RT].requests),
        ]
        others = [r for r in held if r is not request]
        losable = next((r for r in others if self._may_lose(r, step)), None)
        return losable or next((r for r in others if self._may_lose(r, step, even_shared=True)), None)

    def _be_victim(self, request: Request, step: int) -> Request | None:
        """Whose tokens RT takes: of the one it grows against, else of one already behind, else of the least urgent."""
        if self._kv.options.preemption is Preemption.NONE:
            return None
        behind = self._last_victim
        if behind is not None and behind.state is State.DECODING:
            behind = None
        for victim in (self._kv.neighbour(request), behind):
            if victim is not None and self._may_lose(victim, step) and not self._is_spared(victim):
                return victim
        spared = None
        for victim in self._be_least_urgent_first():
            if self._may_lose(victim, step):
                if not self._is_spared(victim):
                    return victim
                spared = spared or victim
        return None if spared is None or spared is self._most_urgent_be() else spared

    def _be_least_urgent_first(self) -> Iterable[Request]:
        yield from reversed(self._running.parked)
        yield from reversed(self._running.behind[Lane.BE].requests)
        yield from reversed(self._running.decoding[Lane.BE].requests)

    def _most_urgent_be(self) -> Request | None:
        first = [
            requests.requests[0]
            for requests in (self._running.behind[Lane.BE], self._running.decoding[Lane.BE])
            if requests.requests
        ]
        return min(first, key=lambda r: r.sort_key, default=None)

    def _younger(self, lane: Lane, step: int, than: Request) -> Request | None:
        """The least urgent request of the lane that may lose something, if it is less urgent than `than`."""
        holders = [
            list(reversed(self._running.parked))[:1] if lane is Lane.BE else [],
            reversed(self._running.behind[lane].requests),
            reversed(self._running.decoding[lane].requests),
        ]
        last = [next((r for r in requests if self._may_lose(r, step)), None) for requests in holders]
        victim = max((r for r in last if r is not None), key=lambda r: r.sort_key, default=None)
        return victim if victim is not None and victim.sort_key > than.sort_key else None

    def _may_lose(self, victim: Request, step: int, *, even_shared: bool = False) -> bool:
        return (
            victim.last_step != step
            and not victim.is_sheltered
            and victim.tail is not None
            and (even_shared or not self._kv.pool.is_shared(victim.tail))
        )

    def _is_spared(self, victim: Request) -> bool:
        return victim.num_preemptions >= self._max_preemptions

    def _reclaim(self, victim: Request, request: Request, num_tokens: int, batch: Batch) -> None:
        """RT takes slots as it needs them; BE, which grows in blocks of its own, takes one."""
        if not victim.num_lost_tokens:  # else it is the same preemption
            self.num_preemptions += 1
            victim.num_preemptions += 1
        if victim is request:
            num_tokens = request.num_computed_tokens
        elif request.lane is Lane.BE or not self._rt_first:
            assert victim.tail is not None
            num_tokens = victim.num_computed_tokens - victim.tail.start
        lost = self._kv.reclaim(victim, num_tokens, batch.number)
        batch.has_preempted = True
        victim.num_lost_tokens += lost
        self.num_truncated_tokens += lost
        if victim.lane is Lane.BE:
            self._last_victim = victim
        self._running.fell_behind(victim)
