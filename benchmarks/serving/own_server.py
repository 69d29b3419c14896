"""This project's own server for a benchmark: an engine and a web process on a temporary directory."""

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

STOP_TIMEOUT_S = 40  # over the engine's own grace for open chats


@dataclass(frozen=True, slots=True)
class Server:
    """A server to measure, and what is known of its processes: at least ids, for their CPU time; of those that were
    started here, also how they fare."""

    url: str
    pids: Sequence[int] = ()
    started: Sequence[tuple[subprocess.Popen[bytes], Path]] = ()

    def check(self) -> None:
        """RuntimeError with the end of its log if a process that was started here has ended."""
        for process, log in self.started:
            if process.poll() is not None:
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{log.stem} ended with status {process.returncode}:\n{tail}")


@contextlib.contextmanager
def own_server(model_dir: Path, model: str, engine_flags: str) -> Iterator[Server]:
    """Starts engine and web, which will answer soon, and stops them at the end. `engine_flags` as on a command line;
    they may name another runner than torch."""
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
        commands = {"engine": [*engine, *shlex.split(engine_flags)], "web": ["bros_batch.web.serve"]}
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
