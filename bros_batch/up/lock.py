"""The lock that allows one `up` per data directory, and the state file `run/up.json` that describes it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bros_batch.up.process_identity import is_child, start_ticks

# sun_path holds 108 bytes on Linux and 104 on macOS, including the final NUL.
MAX_SOCKET_PATH_BYTES = 100
# How long the children of a killed `up` may take to end before the directory counts as in use.
DYING_CHILDREN_S = 10.0


@dataclass(frozen=True, slots=True)
class UpState:
    """Where a running `up` can be reached. `children` maps the name of a service to its process id."""

    pid: int
    url: str
    model: str
    data_dir: str
    redis_url: str
    engine_url: str
    database_url: str
    socket_dir: str
    started_at: float
    start_ticks: int | None = (
        None  # tells the process from a later one with the same id; see `process_identity`
    )
    ready: bool = False
    children: dict[str, int] = field(default_factory=dict)


class AlreadyRunning(Exception):
    """Another `up` runs on this data directory."""


def read_state(data_dir: Path) -> UpState | None:
    """Read the state of the `up` that runs on this data directory. None if there is none, or only a stale file.

    Nothing in the file is believed without a check: the process must run and hold the lock, and services that have
    ended since the file was written are left out.
    """
    try:
        state = UpState(**json.loads((data_dir / "run" / "up.json").read_bytes()))
        os.kill(state.pid, 0)
        if state.start_ticks is not None and start_ticks(state.pid) != state.start_ticks:
            return None
        with (data_dir / "run" / "up.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        children = {name: pid for name, pid in state.children.items() if is_child(pid, state.pid)}
        return replace(state, children=children)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return None


class UpLock:
    """Holds `data_dir/run/up.lock` while this process, or a child that inherits `fd`, is alive.

    The kernel releases the lock however the process ends. The Redis child inherits it, so a new Redis never opens the
    files of one that is still shutting down.
    """

    def __init__(self, data_dir: Path) -> None:
        self._run_dir = data_dir / "run"
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = (self._run_dir / "up.lock").open("ab")
        self.fd = self._file.fileno()
        self._acquire(data_dir)
        self._state_path = self._run_dir / "up.json"
        self.socket_dir = self._make_socket_dir()

    def _acquire(self, data_dir: Path) -> None:
        give_up_at = time.monotonic() + DYING_CHILDREN_S
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                other = read_state(data_dir)
                if (
                    other is None and time.monotonic() < give_up_at
                ):  # the children of a killed `up` are about to end
                    time.sleep(0.02)
                    continue
            self._file.close()
            where = f" (pid {other.pid}, {other.url})" if other else ""
            raise AlreadyRunning(
                f"bros-batch is already running on {data_dir}{where}; stop it, or use another --data-dir."
            )

    def write(self, state: UpState) -> None:
        """Replace up.json atomically. Raises OSError if that is not possible; then the old file stays."""
        temporary = self._state_path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(asdict(state), indent=1) + "\n")
            temporary.replace(self._state_path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def release(self) -> None:
        """Remove the files from the run directory and release the lock.

        The lock file itself stays: if it were removed, two processes could lock two different files of the same name.
        """
        for name in ("redis.sock", "engine.sock"):
            (self.socket_dir / name).unlink(missing_ok=True)
        if self.socket_dir != self._run_dir:
            shutil.rmtree(self.socket_dir, ignore_errors=True)
        self._state_path.unlink(missing_ok=True)
        self._file.close()

    def _make_socket_dir(self) -> Path:
        """Return the run directory, or a private temporary directory if its path is too long for a socket."""
        self._remove_leftovers()
        if len(os.fsencode(self._run_dir / "engine.sock")) <= MAX_SOCKET_PATH_BYTES:
            return self._run_dir
        return Path(tempfile.mkdtemp(prefix="bros-"))  # mode 0700

    def _remove_leftovers(self) -> None:
        """Remove the files of a killed `up`. This process holds the lock, so they are not in use."""
        try:
            left = Path(json.loads(self._state_path.read_bytes())["socket_dir"])
        except (OSError, ValueError, TypeError, KeyError):
            left = self._run_dir
        with contextlib.suppress(OSError):
            ours = left.lstat().st_uid == os.getuid()
            if left != self._run_dir and ours and left.name.startswith("bros-"):
                shutil.rmtree(left, ignore_errors=True)
        for name in ("redis.sock", "engine.sock", "up.json"):
            (self._run_dir / name).unlink(missing_ok=True)
