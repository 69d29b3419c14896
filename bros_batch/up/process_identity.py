"""Which process a process id stands for: ids are used again, so an id alone proves nothing."""

from __future__ import annotations

import os
from pathlib import Path


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since the boot; None if it does not run or the system does not tell.

    Together with the id, this identifies a process until the next boot, whatever is done to the clock.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_child(pid: int, parent: int) -> bool:
    """Whether `pid` is a running child of `parent`. Where the system does not tell, whether `pid` runs."""
    if fields := _stat(pid):
        return int(fields[1]) == parent and fields[0] != "Z"
    if Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on. The name before them may contain anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
