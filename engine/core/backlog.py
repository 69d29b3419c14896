"""Which requests wait, which hold a row of the slot table, and which are next."""

from __future__ import annotations

from engine.core.queues import PromptQueue, SortedRequests, WaitingQueue
from engine.core.request import Request, State
from engine.core.terms import Lane


class Running:
    """Every request between its arrival and its end. `reserved_rt_rows` rows are never given to BE, and RT leaves
    `min_be_rows` to it."""

    def __init__(self, num_rows: int, reserved_rt_rows: int, min_be_rows: int) -> None:
        self._reserved_rt_rows = reserved_rt_rows
        self.min_be_rows = min_be_rows
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self.by_row: list[Request | None] = [None] * num_rows
        self.behind = {lane: SortedRequests() for lane in Lane}
        self.decoding = {lane: SortedRequests() for lane in Lane}
        self.num_waiting = dict.fromkeys(Lane, 0)
        self.waiting = WaitingQueue()
        self.prompts = PromptQueue()  # of RT, in or out of a row
        self.parked: dict[Request, None] = {}  # BE that lost its row and still has KV, the latest last

    def num_rows_of(self, lane: Lane) -> int:
        return len(self.behind[lane]) + len(self.decoding[lane])

    def has(self, lane: Lane) -> bool:
        """Whether the lane has any request at all."""
        return bool(self.num_waiting[lane] or self.decoding[lane].requests or self.behind[lane].requests)

    def give_row(self, request: Request, step: int) -> bool:
        """A waiting request gets a row if there is one for its lane; RT may displace a BE request that this step has
        not planned."""
        due_to_be = max(0, self.min_be_rows - self.num_rows_of(Lane.BE))
        if request.lane is Lane.BE:
            kept = 0 if due_to_be else self._reserved_rt_rows
        else:
            kept = due_to_be
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
                    victim.num_preemptions += 1
                    self._leave_row(victim)
                    victim.state = State.WAITING
                    self.num_waiting[Lane.BE] += 1
                    self.waiting.push(victim)
                    if victim.tail is not None:
                        self.parked[victim] = None
                    return

    def caught_up(self, request: Request) -> None:
        """A request that was behind has one token left to compute."""
        self.behind[request.lane].remove(request)
        self.decoding[request.lane].add(request)
        request.state = State.DECODING

    def fell_behind(self, request: Request) -> None:
        """A request lost computed tokens."""
        if request.state is State.DECODING:
            self.decoding[request.lane].remove(request)
            self.behind[request.lane].add(request)
            request.state = State.BEHIND
            if request.lane is Lane.RT:
                self.prompts.push(request)
        elif request.state is State.WAITING and request.tail is None:
            self.parked.pop(request, None)

    def remove(self, request: Request) -> None:
        """The request computes no more tokens; its state is the caller's to set."""
        if request.state is State.WAITING:
            self.num_waiting[request.lane] -= 1
            self.parked.pop(request, None)
        else:
            self._leave_row(request)

    def clear_queues(self) -> None:
        """Whoever is to wait is enqueued anew."""
        self.waiting, self.prompts = WaitingQueue(), PromptQueue()

    def _leave_row(self, request: Request) -> None:
        holders = self.decoding if request.state is State.DECODING else self.behind
        holders[request.lane].remove(request)
        assert request.row is not None
        self.by_row[request.row] = None
        self._free_rows.append(request.row)
        request.row = None

    def check_integrity(self, num_requests: int) -> None:
        """Rows, queues and states agree. Raises AssertionError."""
        held = [request for request in self.by_row if request is not None]
        assert len(held) + len(self._free_rows) == len(self.by_row), "a row is lost"
        for lane in Lane:
            for state, requests in ((State.BEHIND, self.behind[lane]), (State.DECODING, self.decoding[lane])):
                assert all(r.state is state and r in held for r in requests)
                assert sorted(requests, key=lambda r: r.sort_key) == requests.requests
        assert sum(self.num_rows_of(lane) for lane in Lane) == len(held)
        assert len(held) + sum(self.num_waiting.values()) == num_requests
        assert all(r.state is State.WAITING and r.tail is not None for r in self.parked)
