"""`bros-batch up` as a test process on the simulated engine, and a check for processes that it leaves behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from bros_batch.up.service_commands import redis_binary
from tests.factories_text import make_text_model
from tests.services import unavailable, wait_for

MARK = "UP_TEST_MARK"  # not BROS_...: the demo removes those variables for its services
SIMULATED = ("--runner", "simulated")
# A real engine that does not measure its steps before it is ready, and that takes memory for 65,536 tokens. By default
# it fills two fifths of the free memory with zeros, which takes longer than most tests.
REAL = ("--profile-s", "0", "--num-kv-blocks", "4096")
READY_TIMEOUT_S = 240.0  # less than pytest's limit, so that the logs are shown


@dataclass
class Up:
    """A started `up`. `mark` is in the environment of all its descendants."""

    process: subprocess.Popen[str]
    data_dir: Path
    mark: str
    log: Path

    def ready(self, timeout_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
        """Wait until everything is ready and return what `up` printed."""
        assert self.process.stdout is not None
        can_read, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline() if can_read else ""
        assert line, f"up is not ready\n{self.output()}\n{self.last_lines()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def last_lines(self) -> str:
        """The last lines of the log of each service, for the message of a test that fails."""
        logs = sorted((self.data_dir / "logs").glob("*.log"))
        parts = [[f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-15:]] for log in logs]
        return "\n".join(line for part in parts for line in part)

    def output(self) -> str:
        return self.log.read_text()

    def state(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((self.data_dir / "run" / "up.json").read_text())
        return answer

    def kill(self, name: str) -> None:
        """Kill a service, once it runs."""

        def is_killed() -> bool:
            pid = self.state()["children"].get(name)
            try:
                if pid:
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False  # it has died before, which `up` is about to write
            return bool(pid)

        wait_for(is_killed, name)

    def is_ready(self) -> bool:
        try:
            url = f"{self.state()['url']}/ready"
            return httpx.get(url, trust_env=False, verify=False).status_code == 200
        except httpx.TransportError:
            return False

    def family(self) -> list[psutil.Process]:
        """List all living descendants, including orphans."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_zombie = process.status() == psutil.STATUS_ZOMBIE
                if not is_zombie and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def wait_until_nothing_is_left(self) -> None:
        def nothing() -> bool:
            return not self.family()

        with suppress(AssertionError):
            wait_for(nothing)
        left = [(process.pid, " ".join(process.cmdline())) for process in self.family()]
        assert not left, left


def start_up(
    data_dir: Path, *flags: str, engine: tuple[str, ...] = SIMULATED, console: int | None = None, **env: str
) -> Up:
    """Start `up` without waiting until it is ready. Skips the test if there is no Redis.

    Its messages go to `console`, a file descriptor, if that is given, and else to a file.
    """
    if redis_binary() is None:
        unavailable("Redis")
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    model = make_text_model(data_dir.parent / f"{data_dir.name}-model")
    command = [sys.executable, "-m", "cli", "up", "--json", "--data-dir", str(data_dir), "--port", "0"]
    command += ["--model", str(model), "--served-model-name", "tiny", *flags, "--", *engine]
    mark = uuid.uuid4().hex
    log = data_dir.parent / f"{data_dir.name}-{mark[:6]}.log"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BROS_")}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr if console is None else console,
            text=True,
            env={**kept, "XDG_STATE_HOME": str(data_dir.parent / "state"), MARK: mark, **env},
            start_new_session=True,
        )
    return Up(process, data_dir, mark, log)


@contextmanager
def running_up(data_dir: Path, *flags: str, engine: tuple[str, ...] = SIMULATED, **env: str) -> Iterator[Up]:
    """Run an `up` that is ready, and stop it at the end."""
    up = start_up(data_dir, *flags, engine=engine, **env)
    try:
        up.ready()
        yield up
    finally:
        stop(up)


def stop(up: Up) -> int:
    """Stop `up` with SIGTERM and return its exit code. Processes that do not stop are killed."""
    if up.process.poll() is None:
        up.process.send_signal(signal.SIGTERM)
    try:
        return up.process.wait(90)
    finally:
        for process in up.family():
            with suppress(psutil.Error):
                process.kill()
        up.process.wait()
        if up.process.stdout is not None:
            up.process.stdout.close()
