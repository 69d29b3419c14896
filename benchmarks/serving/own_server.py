"""A bros-batch server for a benchmark: an engine and a web process in a temporary directory."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_S = 40  # longer than the engine's own grace period for open chats


@dataclass(frozen=True, slots=True)
class Server:
    """A server to measure. `pids` are its processes, for their CPU time; `started` lists the processes
    that this benchmark started, with their log files."""

    url: str
    pids: Sequence[int] = ()
    started: Sequence[tuple[subprocess.Popen[bytes], Path]] = ()

    def check(self) -> None:
        """Raise RuntimeError with the end of the log if a process that was started here has ended."""
        for process, log in self.started:
            if process.poll() is not None:
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{log.stem} ended with status {process.returncode}:\n{tail}")


@contextlib.contextmanager
def own_server(model_dir: Path, model: str, engine_flags: str) -> Iterator[Server]:
    """Start an engine and a web process, and stop them at the end of the block. They may not be ready yet.

    `engine_flags` is written as on a command line, and may select a runner other than torch.
    """
    with tempfile.TemporaryDirectory(prefix="bros-serving-") as directory, contextlib.ExitStack() as stack:
        engine_url = f"unix://{directory}/engine.sock"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        env = {
            **os.environ,
            "BROS_DATA_DIR": directory,
            "BROS_ENGINE_URL": engine_url,
            "BROS_HOST": "127.0.0.1",
            "BROS_PORT": str(port),
            "BROS_MODEL": str(model_dir),
            "BROS_SERVED_MODEL_NAME": model,
        }
        engine = ["engine", "--model", str(model_dir), "--served-model-name", model, "--listen", engine_url]
        subprocess.run([sys.executable, "-m", "cli", "db", "upgrade"], env=env, check=True)
        commands = {"engine": [*engine, *shlex.split(engine_flags)], "web": ["bros_batch.web"]}
        started = [
            stack.enter_context(_running(command, env, Path(directory) / f"{name}.log"))
            for name, command in commands.items()
        ]
        yield Server(f"http://127.0.0.1:{port}", [process.pid for process, _ in started], started)


@contextlib.contextmanager
def _running(
    command: list[str], env: dict[str, str], log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=env, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process, log
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
