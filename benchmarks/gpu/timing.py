"""Timing of work on a device: device events, medians of many runs, and caches that hold something else in between.

Events include the launch of what they enclose, which matters for a short kernel. Short work is therefore captured in
a graph and timed as replays:

    graph A: read a buffer, work, read a buffer, work ...      graph B: read a buffer, read a buffer ...

The time of the work is the difference. In between, a buffer is read and not written: the lines of the cache that a
write leaves behind are written to memory while the next kernel runs, and make it longer than it is.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable

import torch

from engine.runner.graph_timing import replayed_s

log = logging.getLogger("engine.benchmark")

# Read between two runs, so that the second finds nothing of the first in the cache. It is several times the L2 cache
# of any current GPU (60 MB on an H200, 126 MB on a B200), and takes long enough (0.25 ms at 4 TB/s) to launch three
# kernels meanwhile.
FLUSH_BYTES = 1 << 30
# The same in a graph, where nothing has to be launched meanwhile. Twice the cache suffices, and the shorter it is, the
# smaller is its part in the difference.
GRAPH_FLUSH_BYTES = 1 << 28
# Work that takes less is timed by replays, each of which repeats it so many times.
SHORT_S, REPETITIONS = 50e-6, 20
WARM_UPS = (
    3  # the first run compiles and allocates; the next ones run before the clocks have reached their maximum
)
MIN_RUNS = 5  # unless a single run exceeds the time for all


class Stopwatch:
    """Times calls on one device, from one thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self._flushed = torch.zeros(FLUSH_BYTES // 4 if self.is_cuda else 1, dtype=torch.int32, device=device)

    def seconds(
        self, work: Callable[[], object], *, is_cold: bool = True, max_s: float = 0.3, max_runs: int = 50
    ) -> float:
        """Return the median seconds that the device takes for the kernels that `work` launches.

        With `is_cold`, the operands come from memory and not from the cache. The flush also keeps the device busy while
        `work` launches. What takes less than `SHORT_S` is measured again as a replay, unless it cannot be captured. On
        a CPU, it is the median time of `work`, or the time of a single long run.
        """
        for _ in range(WARM_UPS):
            started_s = time.perf_counter()
            work()
            self.wait()
            once_s = time.perf_counter() - started_s
            if not self.is_cuda and once_s > max_s / MIN_RUNS:
                return once_s
        num_runs = max(MIN_RUNS, min(max_runs, int(max_s / max(once_s, 1e-6))))
        if not self.is_cuda:
            return statistics.median(self._wall_s(work) for _ in range(num_runs))
        pairs = []
        for _ in range(num_runs):
            if is_cold:
                self._flush(FLUSH_BYTES)
            start, end = self._event(), self._event()
            start.record()
            work()
            end.record()
            pairs.append((start, end))
        self.wait()
        by_events_s = statistics.median(float(start.elapsed_time(end)) for start, end in pairs) / 1e3
        if by_events_s >= SHORT_S:
            return by_events_s
        try:
            return self._replayed_s(work, is_cold=is_cold)
        except RuntimeError as error:
            log.warning("timed with its launch, because it cannot be captured: %s", error)
            return by_events_s

    def _replayed_s(self, work: Callable[[], object], *, is_cold: bool) -> float:
        def flushes() -> None:
            for _ in range(REPETITIONS):
                self._flush(GRAPH_FLUSH_BYTES)

        def repeated() -> None:
            for _ in range(REPETITIONS):
                if is_cold:
                    self._flush(GRAPH_FLUSH_BYTES)
                work()

        both_s = replayed_s(repeated)
        return max(0.0, both_s - (replayed_s(flushes) if is_cold else 0.0)) / REPETITIONS

    def _flush(self, num_bytes: int) -> None:
        self._flushed[: num_bytes // 4].sum(dtype=torch.int32)

    def wait(self) -> None:
        """Wait until the device has finished all work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def _event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def _wall_s(self, work: Callable[[], object]) -> float:
        started_s = time.perf_counter()
        work()
        return time.perf_counter() - started_s
