"""Requests that wait for a row, most urgent first."""

from __future__ import annotations

import heapq
import math

from engine.core.request import Request


class WaitingQueue:
    """Ordered by priority, then deadline, then arrival. A request that ends while it waits stays in the heap and is
    dropped when it comes up: no search through a backlog."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, float, int, Request]] = []
        self._waiting: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, request: Request) -> None:
        deadline_s = math.inf if request.deadline_s is None else request.deadline_s
        heapq.heappush(self._heap, (-request.priority, deadline_s, request.order, request))
        self._waiting[request.request_id] = request

    def peek(self) -> Request | None:
        """The most urgent request, or None."""
        while self._heap:
            request = self._heap[0][3]
            if self._waiting.get(request.request_id) is request:  # its id may be in use again
                return request
            heapq.heappop(self._heap)
        return None

    def pop(self) -> Request:
        """Take out what `peek` gave."""
        request = heapq.heappop(self._heap)[3]
        del self._waiting[request.request_id]
        return request

    def discard(self, request: Request) -> None:
        """The request ended while it waited."""
        del self._waiting[request.request_id]
