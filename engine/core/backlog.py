"""All requests between their arrival and their end: which of them wait, and which hold a row of the slot table."""

from __future__ import annotations

from operator import attrgetter

from engine.core.queues import PromptQueue, SortedRequests, WaitingQueue
from engine.core.request import Request, State
from engine.core.terms import Lane

_sort_key = attrgetter("sort_key")


class Backlog:
    """`reserved_rt_rows` of the `num_rows` rows are never given to BE, and RT leaves `min_be_rows` to BE."""

    def __init__(self, num_rows: int, reserved_rt_rows: int, min_be_rows: int) -> None:
        self._reserved_rt_rows = reserved_rt_rows
        self.min_be_rows = min_be_rows
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self.by_row: list[Request | None] = [None] * num_rows
        self.behind = {lane: SortedRequests() for lane in Lane}
        self.decoding = {lane: SortedRequests() for lane in Lane}
        self.num_waiting = dict.fromkeys(Lane, 0)
        self.waiting = WaitingQueue()
        self.prompts = PromptQueue()  # RT requests, with a row or without
        self.parked: dict[
            Request, None
        ] = {}  # BE that lost its row but still has KV, in the order of losing it

    def num_rows_of(self, lane: Lane) -> int:
        return len(self.behind[lane]) + len(self.decoding[lane])

    def has(self, lane: Lane) -> bool:
        """Whether there is any request of the lane."""
        return bool(self.num_waiting[lane] or self.decoding[lane].requests or self.behind[lane].requests)

    # Arriving and leaving -------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request by its sort key."""
        self.num_waiting[request.lane] += 1
        self.waiting.push(request)

    def add_by_deadline(self, request: Request) -> None:
        """Queue an RT request by the deadline of its next token."""
        self.num_waiting[request.lane] += 1
        self.prompts.push(request)

    def remove(self, request: Request) -> None:
        """The request computes no more tokens. The caller sets its state."""
        if request.state is State.WAITING:
            self.num_waiting[request.lane] -= 1
            self.parked.pop(request, None)
        else:
            self._leave_row(request)

    def clear_queues(self) -> None:
        """Empty the queues; requests that are to wait are then added again."""
        self.waiting, self.prompts = WaitingQueue(), PromptQueue()

    # Rows -----------------------------------------------------------------------------------------------

    def give_row(self, request: Request, step: int) -> bool:
        """Give a waiting request a row if its lane may have one. RT may displace a BE request that this step has not
        planned."""
        missing_be_rows = max(0, self.min_be_rows - self.num_rows_of(Lane.BE))
        if request.lane is Lane.BE:
            kept = 0 if missing_be_rows else self._reserved_rt_rows
        else:
            kept = missing_be_rows
            if not self._free_rows:
                self._displace_be(step)
        if len(self._free_rows) <= kept:
            return False
        self.num_waiting[request.lane] -= 1
        request.row = self._free_rows.pop()
        self.by_row[request.row] = request
        request.state = State.BEHIND
        self.behind[request.lane].add(request)
        self.parked.pop(request, None)
        return True

    def _displace_be(self, step: int) -> None:
        if self.num_rows_of(Lane.BE) <= self.min_be_rows:
            return
        for requests in (self.behind[Lane.BE].requests, self.decoding[Lane.BE].requests):
            for victim in reversed(requests):
                if victim.last_step != step and not victim.is_sheltered:
                    self.displace(victim)
                    return

    def last_of_be(self) -> Request | None:
        """The least urgent of the BE requests that have a row, if there are any."""
        behind, decoding = self.behind[Lane.BE].requests, self.decoding[Lane.BE].requests
        return max(behind[-1:] + decoding[-1:], key=_sort_key, default=None)

    def displace(self, victim: Request) -> None:
        """Take the row of a BE request. It then waits, but it keeps its tokens and its memory."""
        victim.num_preemptions += 1
        self._leave_row(victim)
        victim.state = State.WAITING
        self.add(victim)
        if victim.tail is not None:
            self.parked[victim] = None

    def has_row_for_be(self) -> bool:
        """Whether a BE request that waits would get a row."""
        kept = 0 if self.num_rows_of(Lane.BE) < self.min_be_rows else self._reserved_rt_rows
        return len(self._free_rows) > kept

    def parked_below(self, priority: int) -> list[Request]:
        """The parked requests of lower priority, those first that lost their row last."""
        return [request for request in reversed(self.parked) if request.priority < priority]

    def catch_up(self, request: Request) -> None:
        """A request that was behind has one token left to compute."""
        self.behind[request.lane].remove(request)
        self.decoding[request.lane].add(request)
        request.state = State.DECODING

    def fall_behind(self, request: Request) -> None:
        """A request has lost computed tokens, or got several that are not computed."""
        if request.state is State.DECODING:
            self.decoding[request.lane].remove(request)
            self.behind[request.lane].add(request)
            request.state = State.BEHIND
            if request.lane is Lane.RT:
                self.prompts.push(request)
        elif request.state is State.WAITING and request.tail is None:
            self.parked.pop(request, None)

    def _leave_row(self, request: Request) -> None:
        holders = self.decoding if request.state is State.DECODING else self.behind
        holders[request.lane].remove(request)
        assert request.row is not None
        self.by_row[request.row] = None
        self._free_rows.append(request.row)
        request.row = None

    def check_integrity(self, num_requests: int) -> None:
        """Verify that rows, queues and states agree. Raises AssertionError."""
        held = [request for request in self.by_row if request is not None]
        assert len(held) + len(self._free_rows) == len(self.by_row), "a row is lost"
        for lane in Lane:
            for state, requests in ((State.BEHIND, self.behind[lane]), (State.DECODING, self.decoding[lane])):
                assert all(r.state is state and r in held for r in requests)
                assert sorted(requests, key=lambda r: r.sort_key) == requests.requests
        assert sum(self.num_rows_of(lane) for lane in Lane) == len(held)
        assert len(held) + sum(self.num_waiting.values()) == num_requests
        assert all(r.state is State.WAITING and r.tail is not None for r in self.parked)
