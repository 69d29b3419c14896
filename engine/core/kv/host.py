"""The host pool: which slots of host memory hold copies of which tokens' KV. The oldest copies are dropped first.

The copies of a request are one run of consecutive positions. The KV of a position never changes while its request
lives, so a copy remains valid after it was restored, and tokens that are lost again need no second copy:

    computed        [0 ................ 37)
    copies                     [25 ............. 48)    truncated to 37 after restoring up to 41: nothing to copy
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice

from engine.core.plan import SlotCopy
from engine.core.request import Request


class HostRun:
    """Copies of one request's positions [start, start + len(slots))."""

    __slots__ = ("last_step", "slots", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.slots: deque[int] = deque()
        self.last_step = -1  # the last step that restores from the run and reads its slots

    @property
    def end(self) -> int:
        return self.start + len(self.slots)


class HostPool:
    """Hands out `num_slots` host slots, in O(1) per token moved."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._runs: OrderedDict[Request, HostRun] = OrderedDict()  # least recently saved first

    @property
    def num_used_slots(self) -> int:
        return self.num_slots - len(self._free)

    def save(self, request: Request, start: int, device_slots: list[int], step: int) -> SlotCopy | None:
        """The copies to make of positions [start, start + len(device_slots)), a suffix of the request's computed
        tokens, as far as they have none yet and the pool has room. Lower positions go first: they are restored first.
        None if there is nothing to copy."""
        run = self._runs.get(request)
        end = start + len(device_slots)
        if run is not None and (end < run.start or start > run.end):
            if not self._drop(request, step):
                return None
            run = None
        if run is None:
            run = HostRun(end)
        before = max(0, run.start - start)
        self._make_room(before + max(0, end - run.end), request, step)
        while len(self._free) < before and run.slots and run.last_step != step:
            self._free.append(run.slots.pop())
        copies = SlotCopy([], [])
        if before <= len(self._free):
            taken = [self._free.pop() for _ in range(before)]
            run.slots.extendleft(reversed(taken))
            copies.device_slots.extend(device_slots[:before])
            copies.host_slots.extend(taken)
        elif run.slots:
            return None  # its slots are being read in this step
        run.start = min(run.start, start)
        first = run.end - start
        after = max(0, min(len(self._free), len(device_slots) - first))
        taken = [self._free.pop() for _ in range(after)]
        run.slots.extend(taken)
        copies.device_slots.extend(device_slots[first : first + after])
        copies.host_slots.extend(taken)
        if run.slots:
            self._runs[request] = run
            self._runs.move_to_end(request)
        return copies if copies.host_slots else None

    def restorable(self, request: Request) -> int:
        """How many tokens that follow the computed ones have copies. The last token of a request does not count: it has
        to be computed."""
        run = self._runs.get(request)
        if run is None or not run.start <= request.num_computed_tokens < run.end:
            return 0
        return min(run.end, request.num_tokens - 1) - request.num_computed_tokens

    def read(self, request: Request, num_tokens: int, step: int) -> list[int]:
        """The host slots of the `num_tokens` tokens that follow the computed ones, for this step to read."""
        run = self._runs[request]
        run.last_step = step
        first = request.num_computed_tokens - run.start
        return list(islice(run.slots, first, first + num_tokens))

    def free(self, request: Request) -> None:
        """Free the copies of a request."""
        run = self._runs.pop(request, None)
        if run is not None:
            self._free.extend(run.slots)

    def _make_room(self, num_slots: int, keep: Request, step: int) -> None:
        while len(self._free) < num_slots:
            oldest = next(iter(self._runs), keep)
            if oldest is keep or not self._drop(oldest, step):
                return

    def _drop(self, request: Request, step: int) -> bool:
        if self._runs[request].last_step == step:
            return False
        self._free.extend(self._runs.pop(request).slots)
        return True

    def check_integrity(self) -> None:
        """Verify that every host slot is free or in exactly one run. Raises AssertionError."""
        held = [slot for run in self._runs.values() for slot in run.slots]
        assert sorted(held + self._free) == list(range(self.num_slots)), "a host slot is lost or held twice"
        assert all(run.slots for run in self._runs.values())
