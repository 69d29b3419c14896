"""One `up` a data directory: the lock that says so, and `run/up.json`, which says where it is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

# sun_path holds 108 bytes on Linux and 104 on macOS, the final NUL included.
MAX_SOCKET_PATH_BYTES = 100
# How long the children of a killed `up` may take to end before we call the directory taken.
DYING_CHILDREN_S = 10.0


@dataclass(frozen=True, slots=True)
class UpState:
    """A running `up`, as others find it. `children` maps a service to its process id."""

    pid: int
    url: str
    model: str
    data_dir: str
    redis_url: str
    engine_url: str
    database_url: str
    socket_dir: str
    started_at: float
    ready: bool = False
    children: dict[str, int] = field(default_factory=dict)


class AlreadyRunning(Exception):
    """Another `up` holds the data directory."""


def read_state(data_dir: Path) -> UpState | None:
    """The `up` that runs on this data directory, or None. A file left by a killed one does not count."""
    try:
        state = UpState(**json.loads((data_dir / "run" / "up.json").read_bytes()))
        os.kill(state.pid, 0)
        with (data_dir / "run" / "up.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return state
    except (OSError, ValueError, TypeError):
        return None
    return None


class UpLock:
    """Holds `data_dir/run/up.lock` for as long as this process or a child that was given `fd` lives: the
    kernel lets go of it, whatever kills us. So a new Redis never meets a dying one on the same files.
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
                if other is None and time.monotonic() < give_up_at:  # children of a killed `up`, about to end
                    time.sleep(0.02)
                    continue
            self._file.close()
            where = f" (pid {other.pid}, {other.url})" if other else ""
            raise AlreadyRunning(
                f"bros-batch is already running on {data_dir}{where}; stop it, or give another --data-dir."
            )

    def write(self, state: UpState) -> None:
        """Replace up.json in one step; a full disk leaves the old one."""
        temporary = self._state_path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(asdict(state), indent=1) + "\n")
            temporary.replace(self._state_path)

    def release(self) -> None:
        """Remove what we put into the run directory, and let the next one in. The lock file itself stays:
        with it removed, two processes could hold two files of one name."""
        for name in ("redis.sock", "engine.sock"):
            (self.socket_dir / name).unlink(missing_ok=True)
        if self.socket_dir != self._run_dir:
            shutil.rmtree(self.socket_dir, ignore_errors=True)
        self._state_path.unlink(missing_ok=True)
        self._file.close()

    def _make_socket_dir(self) -> Path:
        """The run directory, or a private short one where its path is too long for a socket's name."""
        self._remove_leftovers()
        if len(os.fsencode(self._run_dir / "engine.sock")) <= MAX_SOCKET_PATH_BYTES:
            return self._run_dir
        return Path(tempfile.mkdtemp(prefix="bros-"))  # mode 0700

    def _remove_leftovers(self) -> None:
        """What a killed `up` could not remove. We hold the lock, so nobody uses it."""
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
