"""A judge: processes that find out whether a grammar can be compiled, within a limit of processor time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from engine.core.terms import Grammar
from engine.grammars.contract import Problem

_PROGRAM = "engine.grammars.judge_process"
# Far more than a grammar may take of processor time, because the machine may be busy, and more than it takes to start.
ANSWER_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a grammar, and the processor time that this took to find out. `is_unfinished`: its time was up
    before that was known."""

    problem: Problem | None
    is_unfinished: bool
    cpu_s: float


class JudgeEnded(Exception):
    """The processes of a judge ended before they answered."""


class Judge:
    """Judges a grammar for each of some callers at a time. Its processes are started for the first of them."""

    def __init__(self, vocabulary: Path, num_callers: int) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connections: list[socket.socket] = []
        self._in_use = [threading.Lock() for _ in range(num_callers)]  # each connection
        self._is_closed = False

    def verdict(self, caller: int, grammar: Grammar, limit_s: float, *, is_idle: bool) -> Verdict:
        """Judges a grammar for this caller, a number from 0 on, within so many seconds of processor time. With
        `is_idle`, it takes only the time that nothing else wants.

        Raises JudgeEnded or OSError, after which it can be called again.
        """
        request = {"kind": grammar.kind, "text": grammar.text, "limit_s": limit_s, "is_idle": is_idle}
        with self._in_use[caller]:
            with self._lock:
                if self._process is None:
                    self._start()
                process, connection = self._process, self._connections[caller]
            try:
                connection.sendall(json.dumps(request).encode() + b"\n")
                answer = _line(connection)
            except OSError as error:  # such as a timeout, and the end of all processes
                connection.close()
                self._end(process)
                raise JudgeEnded from error
        found = json.loads(answer)
        problem = found["problem"]
        return Verdict(
            None if problem is None else Problem(**problem), found["is_unfinished"], found["cpu_s"]
        )

    def close(self) -> None:
        """Ends the processes, for good."""
        self._is_closed = True
        self._end(self._process)

    def _start(self) -> None:
        if self._is_closed:
            raise JudgeEnded
        pairs = [socket.socketpair() for _ in self._in_use]
        theirs = [each.fileno() for _, each in pairs]
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _PROGRAM, str(self._vocabulary), *map(str, theirs)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=theirs,
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                # A group of its own, because Ctrl-C is meant for the engine, which ends its judge. Not a session of its
                # own: Linux may divide the CPU evenly among sessions, and then priorities count only within one.
                process_group=0,
            )
        finally:
            for _, each in pairs:
                each.close()
            if self._process is None:
                for each, _ in pairs:
                    each.close()
        self._connections = [each for each, _ in pairs]
        for each in self._connections:
            each.settimeout(ANSWER_LIMIT_S)

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        """Ends these processes. Another caller may have done so already."""
        with self._lock:
            if process is None or process is not self._process:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for connection, in_use in zip(self._connections, self._in_use, strict=True):
                if in_use.acquire(blocking=False):
                    connection.close()
                    in_use.release()
                # Otherwise its caller reads that the other end is closed, and closes it.
            self._process, self._connections = None, []


def _line(connection: socket.socket) -> bytes:
    """One line. Raises OSError if there is none."""
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(65536)
        if not part:
            raise ConnectionError("the judge has ended")
        line += part
    return line
