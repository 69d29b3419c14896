"""Victim orders: which request gives up memory for another, and how much of it.

No order takes anything from a request that is in the current step's plan, or from one that is sheltered.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.backlog import Backlog
from engine.core.batch import Batch
from engine.core.kv.cache import KVCacheManager
from engine.core.request import Request, State
from engine.core.terms import Lane, Preemption


class Victims:
    """What all orders have in common: the candidates. See `engine.core.allocator.VictimOrder` for `choose`."""

    def __init__(self, kv: KVCacheManager, backlog: Backlog) -> None:
        self._kv = kv
        self._backlog = backlog

    def _least_urgent(self, lane: Lane, step: int, than: Request) -> Request | None:
        """The least urgent request of the lane that can lose memory, if it is less urgent than `than`."""
        backlog = self._backlog
        held: list[Iterable[Request]] = [
            list(reversed(backlog.parked))[:1] if lane is Lane.BE else [],
            reversed(backlog.behind[lane].requests),
            reversed(backlog.decoding[lane].requests),
        ]
        last = [next((r for r in requests if self._can_lose(r, step)), None) for requests in held]
        victim = max((r for r in last if r is not None), key=lambda r: r.sort_key, default=None)
        return victim if victim is not None and victim.sort_key > than.sort_key else None

    def _can_lose(self, victim: Request, step: int, *, even_shared: bool = False) -> bool:
        return (
            victim.last_step != step
            and not victim.is_sheltered
            and victim.tail is not None
            and (even_shared or not self._kv.pool.is_shared(victim.tail))
        )

    @staticmethod
    def _newest_block(victim: Request) -> int:
        """How many computed tokens the victim's last extent holds: it gives up a block."""
        assert victim.tail is not None
        return victim.num_computed_tokens - victim.tail.start


class OldestFirst(Victims):
    """A request takes blocks from those that arrived later, from bulk first."""

    def choose(
        self, request: Request, missing: int, batch: Batch, *, has_room: bool, force: bool
    ) -> tuple[Request, int] | None:
        step = batch.number
        victim = self._least_urgent(Lane.BE, step, request) or self._least_urgent(Lane.RT, step, request)
        return (victim, self._newest_block(victim)) if victim is not None else None


class RtFirst(Victims):
    """RT takes from BE as many slots as it needs. Within a lane, a request takes from less urgent ones: RT again as
    many slots as it needs, BE a block, because BE grows in blocks of its own.

    A BE request preempted `max_preemptions` times is spared while there are other victims. The most urgent BE request
    is spared even without others, so that every BE request ends at some time.
    """

    def __init__(self, kv: KVCacheManager, backlog: Backlog, max_preemptions: int) -> None:
        super().__init__(kv, backlog)
        self._max_preemptions = max_preemptions
        self._last_be_victim: Request | None = None

    def choose(
        self, request: Request, missing: int, batch: Batch, *, has_room: bool, force: bool
    ) -> tuple[Request, int] | None:
        victim = self._be_victim(request, batch.number) if request.lane is Lane.RT else None
        victim = victim or self._least_urgent(request.lane, batch.number, request)
        return self._take_from(victim, request, missing) if victim is not None else None

    def _take_from(self, victim: Request, request: Request, missing: int) -> tuple[Request, int]:
        if victim.lane is Lane.BE:
            self._last_be_victim = victim
        if victim is request:
            return victim, request.num_computed_tokens
        return victim, missing if request.lane is Lane.RT else self._newest_block(victim)

    def _be_victim(self, request: Request, step: int) -> Request | None:
        """The BE request that RT takes from: the one it grows against, else the last victim if it is still behind,
        else the least urgent one."""
        if self._kv.options.preemption is Preemption.NONE:
            return None
        behind = self._last_be_victim
        if behind is not None and behind.state is State.DECODING:
            behind = None
        for victim in (self._kv.pool.sharing.neighbor(request), behind):
            if victim is not None and self._can_lose(victim, step) and not self._is_spared(victim):
                return victim
        spared = None
        for victim in self._be_least_urgent_first():
            if self._can_lose(victim, step):
                if not self._is_spared(victim):
                    return victim
                spared = spared or victim
        return None if spared is None or spared is self._most_urgent_be() else spared

    def _be_least_urgent_first(self) -> Iterable[Request]:
        yield from reversed(self._backlog.parked)
        yield from reversed(self._backlog.behind[Lane.BE].requests)
        yield from reversed(self._backlog.decoding[Lane.BE].requests)

    def _most_urgent_be(self) -> Request | None:
        first = [
            requests.requests[0]
            for requests in (self._backlog.behind[Lane.BE], self._backlog.decoding[Lane.BE])
            if requests.requests
        ]
        return min(first, key=lambda r: r.sort_key, default=None)

    def _is_spared(self, victim: Request) -> bool:
        return victim.num_preemptions >= self._max_preemptions


class BrosVictims(RtFirst):
    """As RT first, but BE only takes memory for its decode tokens: prompts of BE wait until there is room, or take it
    from requests of lower priority that lost their row.

    A request may be forced on the others where no request can move otherwise. It is then sheltered: until it ends, it
    loses nothing, and no other request is forced. Otherwise two requests could take the same memory from each other
    without end.
    """

    def __init__(self, kv: KVCacheManager, backlog: Backlog, max_preemptions: int) -> None:
        super().__init__(kv, backlog, max_preemptions)
        self._sheltered: Request | None = None

    @property
    def sheltered(self) -> Request | None:
        """The request that was forced on the others, if there is one."""
        request = self._sheltered
        if request is not None and (request.state in (State.ENDING, State.DONE) or not request.is_sheltered):
            self._sheltered = None
        return self._sheltered

    def choose(
        self, request: Request, missing: int, batch: Batch, *, has_room: bool, force: bool
    ) -> tuple[Request, int] | None:
        if request.lane is Lane.RT or request.state is State.DECODING or force:
            chosen = super().choose(request, missing, batch, has_room=has_room, force=force)
            if chosen is not None:
                return chosen
        else:
            for outranked in self._backlog.parked_below(request.priority):
                if self._can_lose(outranked, batch.number):
                    return self._take_from(outranked, request, missing)
        if not force or self.sheltered not in (None, request):
            return None
        victim = self._any_victim(request, batch.number)
        if victim is None and not has_room and not batch.shape.rows and request.tail is not None:
            victim = request  # its own short extents leave no room for it: it starts over
        if victim is None:
            return None
        self._sheltered = request
        request.is_sheltered = True
        return self._take_from(victim, request, missing)

    def _any_victim(self, request: Request, step: int) -> Request | None:
        """The request that gives up memory for a forced one: the least urgent of BE, then of RT."""
        held = [
            *self._be_least_urgent_first(),
            *reversed(self._backlog.behind[Lane.RT].requests),
            *reversed(self._backlog.decoding[Lane.RT].requests),
        ]
        others = [r for r in held if r is not request]
        victim = next((r for r in others if self._can_lose(r, step)), None)
        return victim or next((r for r in others if self._can_lose(r, step, even_shared=True)), None)
