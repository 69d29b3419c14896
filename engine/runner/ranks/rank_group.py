"""The processes of all ranks, which start and end together: commands to them, their answers, and why they ended."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from engine.config import EngineConfig
from engine.core.plan import StepResult
from engine.runner.base import RunnerInfo, UnsupportedModel
from engine.runner.ranks.messages import CLOSE, RESULT, Assignment, Failed, Ready, Unsupported

log = logging.getLogger("engine.parallel")

_PROGRAM = "engine.runner.ranks.rank_process"

# Steps take fractions of a second; the first ones, which compile kernels, take a minute or two.
_STEP_LIMIT_S = 600.0
# The death of one rank makes the others fail. It is noticed within this time, so that their errors are not reported as
# the cause.
_LAST_MESSAGES_S = 1.0
_CLOSE_GRACE_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class RankHandle:
    """The process of one rank, and the socket to it."""

    number: int
    process: subprocess.Popen[bytes]
    connection: Connection
    _sending: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def start(assignment: Assignment) -> RankHandle:
        ours, theirs = Pipe()
        number, size = assignment.number, assignment.size
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        variables = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size, "PYTHONPATH": path}
        env = os.environ | {name: str(value) for name, value in variables.items()}
        if sys.platform == "linux":
            # Otherwise gloo looks up the address of the host's name, which not every host has.
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if assignment.config.device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=env,
                pass_fds=(theirs.fileno(),),
            )
        rank = RankHandle(number, process, ours)
        rank.tell(pickle.dumps(assignment))
        return rank

    def tell(self, command: bytes) -> None:
        """Sends a command, from any thread. Does nothing if the rank has ended, which is noticed where its answer is
        awaited."""
        with self._sending, contextlib.suppress(OSError):
            self.connection.send_bytes(command)

    def status(self, limit_s: float) -> int | None:
        """The exit status of the process, or None if it does not end within `limit_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(limit_s)
        return None


class RankGroup:
    """Ranks that are started together and end together. Once a method has raised an error, all of them have ended."""

    def __init__(self, config: EngineConfig, max_pass_tokens: int | None) -> None:
        self._config = config
        self._size = config.tensor_parallel_size
        self._max_pass_tokens = max_pass_tokens
        self._directory = tempfile.TemporaryDirectory(prefix="bros-ranks-")
        self._selector = selectors.DefaultSelector()
        self._infos: dict[int, RunnerInfo] = {}  # by rank
        # By rank, in the order of arrival; None for a rank that ended without a message.
        self._last_messages: dict[int, Unsupported | Failed | None] = {}
        self.ranks: list[RankHandle] = []
        self.results: deque[StepResult] = deque()

    def start(self) -> None:
        """Starts the ranks, and waits until each has loaded its part. Raises UnsupportedModel, or ChildProcessError if
        a rank ended without saying why, or another OSError if a process could not be started."""
        rendezvous = str(Path(self._directory.name) / "rendezvous")
        try:
            for number in range(self._size):
                assignment = Assignment(number, self._size, rendezvous, self._config, self._max_pass_tokens)
                rank = RankHandle.start(assignment)
                self.ranks.append(rank)
                self._selector.register(rank.connection, selectors.EVENT_READ, rank)
            while len(self._infos) < self._size:
                self._receive(None)
        except BaseException:
            self.kill()
            raise

    @property
    def info(self) -> RunnerInfo:
        """What all ranks agreed on, as rank 0 reports it."""
        return self._infos[0]

    @property
    def is_out_of_memory(self) -> bool:
        """Whether a rank has ended because memory ran out."""
        return any(
            isinstance(last, Failed) and last.is_out_of_memory for last in self._last_messages.values()
        )

    def tell(self, command: bytes) -> None:
        """Sends a command to all ranks."""
        for rank in self.ranks:
            rank.tell(command)

    def next_result(self) -> StepResult:
        """Waits for the result of the first step under way. Raises ChildProcessError or UnsupportedModel."""
        self.tell(RESULT)
        end_s = time.monotonic() + _STEP_LIMIT_S
        while not self.results:
            self._receive(end_s - time.monotonic())
        return self.results.popleft()

    def close(self) -> None:
        """Lets the ranks end by themselves, and ends those that do not within a few seconds."""
        self.tell(CLOSE)
        end_s = time.monotonic() + _CLOSE_GRACE_S
        for rank in self.ranks:
            rank.status(max(0.0, end_s - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """Ends all ranks that still run, and releases what they needed."""
        self._selector.close()
        for rank in self.ranks:
            rank.connection.close()
            rank.process.kill()
        for rank in self.ranks:
            rank.process.wait()
        self._directory.cleanup()

    def _receive(self, limit_s: float | None) -> None:
        """Receives messages, like `_listen`. Raises an error if a rank has ended, or if none sends anything."""
        if not self._listen(limit_s):
            self.kill()
            raise ChildProcessError(f"the {self._size} ranks have not answered for {_STEP_LIMIT_S:g} s")
        if self._last_messages:
            self._fail()

    def _listen(self, limit_s: float | None) -> bool:
        """Waits up to `limit_s` (None: without a limit) for messages, and receives them. Returns whether any came."""
        ready = self._selector.select(None if limit_s is None else max(0.0, limit_s))
        for key, _ in ready:
            rank: RankHandle = key.data
            try:
                message = rank.connection.recv()
            except (EOFError, OSError):
                message = None
            if isinstance(message, Ready):
                self._infos[rank.number] = message.info
            elif isinstance(message, StepResult):
                self.results.append(message)
            else:
                self._last_messages[rank.number] = message
                self._selector.unregister(rank.connection)
        return bool(ready)

    def _fail(self) -> NoReturn:
        """Ends all ranks, and raises the error of the one that caused the failure.

        That is a rank that ended without a message, since this makes others fail, or else the first one to send an
        error.
        """
        end_s = time.monotonic() + _LAST_MESSAGES_S
        while len(self._last_messages) < self._size and self._listen(end_s - time.monotonic()):
            pass
        died = [number for number, last in self._last_messages.items() if last is None]
        number = died[0] if died else next(iter(self._last_messages))
        status = self.ranks[number].status(_LAST_MESSAGES_S)
        self.kill()
        match self._last_messages[number]:
            case Unsupported(message):
                raise UnsupportedModel(message)
            case Failed(message, trace):
                log.error("rank %d:\n%s", number, trace.rstrip())
                how = f"failed: {message}"
            case None if status is not None and status < 0:
                how = f"was killed by {signal.Signals(-status).name}"
            case None:
                how = f"ended with status {status}"
        raise ChildProcessError(f"rank {number} of {self._size} {how}; the others cannot continue without it")
