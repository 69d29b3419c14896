"""A supervised child process: start, watch, restart with backoff, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bros_batch.up.child_log import TAIL_LINES, LogPump, RotatingFile
from bros_batch.up.tether import tethered

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
# A child that ran this long was healthy: its next death starts the backoff from the beginning.
STEADY_S = 60.0
# How long to wait for the output pipe of a stopped child to close.
PIPE_CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to run a child.

    `grace_s` is how long the child may take to stop before it is killed. `on_orphaned` is the signal that it receives
    if its supervisor dies.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    grace_s: float
    on_orphaned: signal.Signals = signal.SIGKILL
    pass_fds: Sequence[int] = ()


class Child:
    """A child process that is restarted when it dies.

    `announce(message)` reports starts and deaths to the operator, `show(line)` shows a line of the child's output, and
    `repair(child)` is called after a death, to remove what may keep the child from starting again. Each run has its own
    session: Ctrl-C in a terminal reaches only the supervisor, and a kill also reaches the child's own
    children.
    """

    def __init__(
        self,
        spec: ChildSpec,
        log_dir: Path,
        *,
        announce: Callable[[str], None],
        show: Callable[[str], None],
        verbose: bool,
        repair: Callable[[Child], None] = lambda child: None,
    ) -> None:
        self.spec = spec
        self.has_answered = False  # since its latest start; set by whoever probes it
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)  # of the latest run
        self._tail_before: deque[str] = self._tail
        self.deaths = 0
        self.last_code: int | None = None
        self._announce = announce
        self._show = show
        self._verbose = verbose
        self._repair = repair
        self._file = RotatingFile(log_dir / f"{spec.name}.log")
        self._process: subprocess.Popen[bytes] | None = None
        self._pump: LogPump | None = None
        self._ended = asyncio.Event()
        self._ended.set()
        self._stopping = asyncio.Event()

    @property
    def tail(self) -> deque[str]:
        """The last lines that the child wrote: in its latest run or, as long as that has written none, before it."""
        return self._tail or self._tail_before

    @property
    def pid(self) -> int | None:
        """Process id of the running child, or None."""
        return self._process.pid if self._process is not None and not self._ended.is_set() else None

    async def keep_running(self, on_change: Callable[[], None]) -> None:
        """Run the child until `stop` is called, and restart it after a growing delay whenever it ends before that."""
        delay_s = FIRST_DELAY_S
        while not self._stopping.is_set():
            started_s = time.monotonic()
            try:
                await self._start()
                on_change()
                await self._ended.wait()
                await self._read_output()
                event = f"died ({describe_exit(self.last_code)})"
            except OSError as error:  # out of memory, processes or file descriptors
                event = f"cannot be started ({error.strerror})"
            if self._stopping.is_set():
                return
            lived_s = time.monotonic() - started_s
            self.deaths += 1
            if lived_s > STEADY_S:
                delay_s = FIRST_DELAY_S
            self._announce(f"{self.spec.name} {event} after {lived_s:.1f} s; restarting in {delay_s:g} s")
            self._repair(self)
            on_change()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
            delay_s = min(delay_s * 2, MAX_DELAY_S)

    async def _start(self) -> None:
        read_fd, write_fd = os.pipe()
        output = os.fdopen(read_fd, "rb", 0)
        try:
            self._process = subprocess.Popen(  # noqa: ASYNC220  (quick; SIGCHLD reports its end)
                tethered([*self.spec.command], self.spec.on_orphaned),
                stdin=subprocess.DEVNULL,
                stdout=write_fd,
                stderr=write_fd,
                env=dict(self.spec.env),
                pass_fds=tuple(self.spec.pass_fds),
                start_new_session=True,
            )
        except OSError:
            output.close()
            raise
        finally:
            os.close(write_fd)
        self._ended.clear()
        self.has_answered = False
        if self._tail:
            self._tail_before, self._tail = self._tail, deque(maxlen=TAIL_LINES)
        loop = asyncio.get_running_loop()
        _, self._pump = await loop.connect_read_pipe(
            lambda: LogPump(self._file, self._tail, self._show, self._verbose), output
        )
        self.reap()  # the SIGCHLD may have come before the handler was ready

    def reap(self) -> None:
        """Record the end of the process if it has ended. Called on SIGCHLD."""
        if self._process is None or self._ended.is_set() or self._process.poll() is None:
            return
        self.last_code = self._process.returncode
        self.kill()  # its own children may still be running
        self._ended.set()

    async def stop(self) -> None:
        """Terminate the child, or kill it after its grace period. Returns once it has ended and its output is read."""
        self._stopping.set()
        if self._process is not None and not self._ended.is_set():
            self._process.terminate()
            self.resume()
            try:
                await asyncio.wait_for(self._ended.wait(), self.spec.grace_s)
            except TimeoutError:
                self._announce(f"{self.spec.name} did not stop within {self.spec.grace_s:g} s; killing it")
                self.kill()
                await self._ended.wait()
        await self._read_output()
        self._file.close()

    async def _read_output(self) -> None:
        """Wait until the output of a run that has ended is read."""
        if self._pump is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._pump.closed), PIPE_CLOSE_S)

    def resume(self) -> None:
        """Continue the child if it was stopped by SIGSTOP: until then, it sees no other signal but SIGKILL."""
        self._signal_all(signal.SIGCONT)

    def kill_for_good(self) -> None:
        """Kill the child and do not start it again."""
        self._stopping.set()
        self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the child and every process it started."""
        self._signal_all(signal.SIGKILL)

    def _signal_all(self, signum: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signum)


def describe_exit(code: int | None) -> str:
    """Describe an exit status as `exit code 1` or `killed by SIGKILL`."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
