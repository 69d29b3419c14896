"""Signs of life of the worker and of beat: files in the run directory, touched while they do their work."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from bros_batch.settings import Settings, get_settings


def heartbeat_path(settings: Settings, service: str) -> Path:
    """The file that is touched by `worker`, the main process of a worker, every two seconds; by `pool`, the processes
    of a worker, when a task begins and ends; and by `beat` each time it looks for tasks that are due."""
    return settings.data_dir / "run" / f"{service}.alive"


def touch_heartbeat(service: str) -> None:
    """Touch the file of a service. This needs no space on the disk, and an error is no reason to stop."""
    path = heartbeat_path(get_settings(), service)
    with contextlib.suppress(OSError):
        try:
            os.utime(path)
        except FileNotFoundError:
            path.touch(mode=0o600)
