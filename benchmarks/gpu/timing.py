"""Timing work on a device: by its own events, medians of many runs, caches emptied in between."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

# Written between two runs, so that the second finds nothing of the first in the cache: several times what the L2 of
# any GPU of today holds (60 MB on an H200, 126 MB on a B200), and long enough under way (0.25 ms at 4 TB/s) to launch
# three kernels meanwhile.
FLUSH_BYTES = 1 << 30
WARM_UPS = 3  # the first run compiles and allocates, and the next ones find the clocks still rising
MIN_RUNS = 5  # unless one takes longer than all may


class Stopwatch:
    """Times calls on one device. Used from one thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self._flush = torch.empty(FLUSH_BYTES if self.is_cuda else 1, dtype=torch.uint8, device=device)

    def seconds(
        self, work: Callable[[], object], *, is_cold: bool = True, max_s: float = 0.3, max_runs: int = 50
    ) -> float:
        """Median seconds that the device takes for what `work` launches. `is_cold`: its operands come from memory,
        not from the cache; the flush also keeps the device busy while `work` launches, so that launching is not
        what is measured. On a CPU, median seconds of `work`, or of one run that takes long."""
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
        """Until the device has done everything."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def _event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def _wall_s(self, work: Callable[[], object]) -> float:
        started_s = time.perf_counter()
        work()
        return time.perf_counter() - started_s
