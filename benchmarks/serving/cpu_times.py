"""Who used the processor: the server, this client, and others, who should not have been there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """CPU seconds so far. `server` is None where nobody said which processes are the server's."""

    machine: float
    client: float
    server: float | None

    def since(self, earlier: CpuTimes) -> dict[str, float]:
        """Seconds used by each since then; `others` is the rest of the machine."""
        used = {"machine": self.machine - earlier.machine, "client": self.client - earlier.client}
        if self.server is not None and earlier.server is not None:
            used["server"] = self.server - earlier.server
            used["others"] = max(used["machine"] - used["client"] - used["server"], 0.0)
        return {name: round(seconds, 2) for name, seconds in used.items()}


def cpu_times(server_pids: Sequence[int]) -> CpuTimes:
    """Now. A server's processes are those with `server_pids` and all that descend from them."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "guest", 0.0)
    server = sum(_tree_cpu_s(pid) for pid in server_pids) if server_pids else None
    return CpuTimes(sum(times) - idle, time.process_time(), server)


def _tree_cpu_s(pid: int) -> float:
    spent_s = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for process in [first, *first.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                spent_s += times.user + times.system
    return spent_s
