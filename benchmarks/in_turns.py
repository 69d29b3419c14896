"""Let two servers run in turns, so that a comparison on a shared machine does not depend on when each was measured.

While one server runs, the processes of the other are suspended (SIGSTOP). Both see the same noise, since a turn is
shorter than the changes of the machine's speed. Only the time in which a server could run counts for it.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import psutil


@dataclass(slots=True)
class Turns:
    """When each server ran, as (label, begin, end) in seconds of `time.perf_counter`, and who is still measured."""

    servers: Mapping[str, list[psutil.Process]]
    turn_s: float
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    _ended: set[str] = field(default_factory=set)
    _changed: threading.Event = field(default_factory=threading.Event)

    def end(self, label: str) -> None:
        """The measurement of this server is complete: the time belongs to the other one from now on."""
        self._ended.add(label)
        self._changed.set()

    def active_s(self, label: str, begun_s: float, ended_s: float) -> float:
        """Return for how many seconds of this interval the server could run."""
        inside = (min(end, ended_s) - max(begin, begun_s) for each, begin, end in self.spans if each == label)
        return sum(seconds for seconds in inside if seconds > 0)

    def _take(self) -> None:
        for label in itertools.cycle(self.servers):
            if len(self._ended) == len(self.servers):
                return
            if label in self._ended:
                continue
            for other, processes in self.servers.items():
                if other != label:
                    _signal(processes, signal.SIGSTOP)
            _signal(self.servers[label], signal.SIGCONT)
            begun_s = time.perf_counter()
            self._changed.wait(self.turn_s)
            self._changed.clear()
            self.spans.append((label, begun_s, time.perf_counter()))


@contextlib.contextmanager
def in_turns(pids: Mapping[str, list[int]], turn_s: float) -> Iterator[Turns]:
    """Alternate between the servers until `Turns.end` was called for all of them. `pids` are the processes of each;
    their descendants belong to them. All run again after the block.
    """
    turns = Turns({label: _with_descendants(each) for label, each in pids.items()}, turn_s)
    thread = threading.Thread(target=turns._take, daemon=True)
    thread.start()
    try:
        yield turns
    finally:
        for label in turns.servers:
            turns.end(label)
        thread.join()
        for processes in turns.servers.values():
            _signal(processes, signal.SIGCONT)


def _with_descendants(pids: list[int]) -> list[psutil.Process]:
    roots = [psutil.Process(pid) for pid in pids]
    return [each for root in roots for each in (root, *root.children(recursive=True))]


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
