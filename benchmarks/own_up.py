"""`bros-batch up` for a benchmark: all services, on their own port and in a directory of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STOP_TIMEOUT_S = 90  # longer than `up` gives its services to drain


@contextlib.contextmanager
def own_up(data_dir: Path, *flags: str, engine: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Run `up`, and yield what it prints when it is ready: its URL, its processes and its sockets.

    `flags` are those of `up`, `engine` those of its engine. `BROS_*` variables of this environment do not apply. Raises
    RuntimeError with its output if it does not start.
    """
    command = [sys.executable, "-m", "cli", "up", "--json", "--port", "0", "--data-dir", str(data_dir)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BROS_")}
    path = data_dir.with_name(f"{data_dir.name}-up.log")
    with path.open("w") as log:
        process = subprocess.Popen(
            [*command, *flags, "--", *engine],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=kept,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(path.read_text())
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
