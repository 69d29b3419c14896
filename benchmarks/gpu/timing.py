"""Timing of work on a device: device events, medians of many runs, and emptied caches in between."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

# Written between two runs, so that the second finds nothing of the first in the cache. It is several times the L2 cache
# of any current GPU (60 MB on an H200, 126 MB on a B200), and takes long enough (0.25 ms at 4 TB/s) to launch three
# kernels meanwhile.
FLUSH_BYTES = 1 << 30
WARM_UPS = (
    3  # the first run compiles and allocates; the next ones run before the clocks have reached their maximum
)
MIN_RUNS = 5  # unless a single run exceeds the time for all


class Stopwatch:
    """Times calls on one device, from one thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self._flush = torch.empty(FLUSH_BYTES if self.is_cuda else 1, dtype=torch.uint8, device=device)

    def seconds(
        self, work: Callable[[], object], *, is_cold: bool = True, max_s: float = 0.3, max_runs: int = 50
    ) -> float:
        """Return the median seconds that the device takes for the kernels that `work` launches.

        With `is_cold`, the operands come from memory and not from the cache. The flush also keeps the device busy while
        `work` launches, so that launch overhead is not measured. On a CPU, it is the median time of `work`, or the time
        of a single long run.
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
                self._flush.zero_()
            start, end = self._event(), self._event()
            start.record()
            work()
            end.record()
            pairs.append((start, end))
        self.wait()
        return statistics.median(float(start.elapsed_time(end)) for start, end in pairs) / 1e3

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
