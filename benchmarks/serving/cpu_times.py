"""CPU time of the server, of this client, and of all other processes, which would disturb a measurement."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """CPU seconds so far. `server` is None if the processes of the server are unknown."""

    machine: float
    client: float
    server: float | None

    def since(self, earlier: CpuTimes) -> dict[str, float]:
        """Return the seconds used since `earlier`; `others` is the rest of the machine."""
        used = {"machine": self.machine - earlier.machine, "client": self.client - earlier.client}
        if self.server is not None and earlier.server is not None:
            used["server"] = self.server - earlier.server
            used["others"] = max(used["machine"] - used["client"] - used["server"], 0.0)
        return {name: round(seconds, 2) for name, seconds in used.items()}


def cpu_times(server_pids: Sequence[int]) -> CpuTimes:
    """Read the CPU times. The processes of the server are those in `server_pids` and their descendants."""
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
