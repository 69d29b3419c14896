"""Queues of requests in order of urgency: waiting for a row, holding a row, and RT prompts by deadline."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import count
from operator import attrgetter

from engine.core.request import Request, State

_sort_key = attrgetter("sort_key")

# Heaps that have doubled since they were last cleared of entries that are no longer valid are cleared again, because an
# entry keeps its request and so its prompt. Smaller ones never are.
MIN_CLEARED = 1024


class WaitingQueue:
    """Requests without a row, the most urgent first. A request that gets a row or ends stays in the heap and is dropped
    when it reaches the top, or when many have, so removal never scans the queue."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, float, int], int, Request]] = []
        self._pushes = count()  # a request may be in the heap twice, and requests cannot be compared
        self._clear_at = MIN_CLEARED

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, request: Request) -> None:
        if len(self._heap) >= self._clear_at:
            valid = {entry[2]: entry for entry in self._heap if entry[2].state is State.WAITING}
            self._heap = list(valid.values())
            heapq.heapify(self._heap)
            self._clear_at = max(MIN_CLEARED, 2 * len(self._heap))
        heapq.heappush(self._heap, (request.sort_key, next(self._pushes), request))

    def peek(self) -> Request | None:
        """The most urgent request, or None."""
        while self._heap:
            request = self._heap[0][2]
            if request.state is State.WAITING:
                return request
            heapq.heappop(self._heap)
        return None


class SortedRequests:
    """Requests that hold a row, the most urgent first."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def add(self, request: Request) -> None:
        insort(self.requests, request, key=_sort_key)

    def remove(self, request: Request) -> None:
        i = bisect_left(self.requests, request.sort_key, key=_sort_key)
        assert self.requests[i] is request
        del self.requests[i]


class PromptQueue:
    """RT requests with a prompt or lost tokens to compute, with a row or without, the earliest deadline first. An entry
    is valid as long as its request still has that deadline and waits or is behind."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Request]] = []
        self._pushes = count()  # makes every entry different
        self._clear_at = MIN_CLEARED

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, request: Request) -> None:
        if len(self._heap) >= self._clear_at:
            valid = {entry[3]: entry for entry in self._heap if _is_valid(entry)}
            self._heap = list(valid.values())
            heapq.heapify(self._heap)
            self._clear_at = max(MIN_CLEARED, 2 * len(self._heap))
        heapq.heappush(self._heap, (request.next_deadline_s, request.order, next(self._pushes), request))

    def peek(self) -> Request | None:
        """The request with the earliest deadline, or None."""
        while self._heap:
            if _is_valid(self._heap[0]):
                return self._heap[0][3]
            heapq.heappop(self._heap)
        return None

    def pop(self) -> Request:
        """Remove and return the request that `peek` returned."""
        return heapq.heappop(self._heap)[3]


def _is_valid(entry: tuple[float, int, int, Request]) -> bool:
    deadline_s, _, _, request = entry
    return deadline_s == request.next_deadline_s and request.state in (State.WAITING, State.BEHIND)
