"""Starts Python programs from a process that has loaded what they need: torch and transformers take five seconds.

The program runs in a process of its own, a child of this one, with its own arguments, environment and files. Use it
where a test starts programs for what they do, and not for how they are started.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

MOST_BYTES = 1_000_000  # of a request: arguments and environment
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")  # of `Popen._execute_child`
PR_SET_CHILD_SUBREAPER = 36


def subprocess_by(start: Callable[[dict[str, Any], list[int]], int]) -> Any:
    """The standard module, with a Popen that calls `start` with its request and files, and gets a process id."""

    class Popen(subprocess.Popen[Any]):
        def _execute_child(self, *values: Any) -> None:
            given = inspect.signature(subprocess.Popen._execute_child).bind(self, *values).arguments  # type: ignore[attr-defined]
            numbers = list(given["pass_fds"])
            own = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
            request = {
                "command": [os.fspath(argument) for argument in given["args"]],
                "env": dict(os.environ if given["env"] is None else given["env"]),
                "cwd": str(Path.cwd() if given["cwd"] is None else given["cwd"]),
                "fds": [0, 1, 2, *numbers],
            }
            files = [number if fd == -1 else fd for number, fd in enumerate(own)]
            self.pid = start(request, [*files, *numbers])
            self._child_created = True
            self._close_pipe_fds(*(given[name] for name in PIPES))  # type: ignore[attr-defined]

    return SimpleNamespace(**{**vars(subprocess), "Popen": Popen})


class ForkedPython:
    """The process that has loaded `modules`. `subprocess` takes the place of the standard module."""

    def __init__(self, *modules: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.forked_python", str(theirs.fileno()), *modules]
            self._process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        self.subprocess: Any = subprocess_by(self._start)

    def _start(self, request: dict[str, Any], files: list[int]) -> int:
        # The new process is orphaned at once. The kernel gives it to this one, as long as this is said.
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], files)
            answer = self._socket.recv(64)
        finally:
            prctl(PR_SET_CHILD_SUBREAPER, 0)
        assert answer, "the process that starts others has ended"
        return int(answer)

    def __enter__(self) -> ForkedPython:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()
        self._process.wait()


def fork(request: dict[str, Any], files: list[int]) -> int:
    """Start a program from this process, which has no other thread yet, and return its process id."""
    pid = os.fork()
    if not pid:
        for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if fd > 2 and fd not in files:
                with contextlib.suppress(OSError):  # the folder that was listed
                    os.close(fd)
        run(request, files)
    return pid


def serve(connection: socket.socket) -> None:
    """Start the programs that are asked for, until the other end is closed."""
    while True:
        request, fds, _, _ = socket.recv_fds(connection, MOST_BYTES, 64)
        if not request:
            return
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            pid = os.fork()
            if not pid:
                os.close(reading)
                os.close(writing)
                connection.close()
                run(json.loads(request), fds)
            os.write(writing, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)
        connection.send(os.read(reading, 64))
        for fd in (reading, writing, *fds):
            os.close(fd)


def run(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """Run the program and end this process as Python would."""
    status = 1
    try:
        free = max(request["fds"]) + 1
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, free) for fd in fds]
        for fd in set(fds):
            os.close(fd)
        for fd, number in zip(high, request["fds"], strict=True):
            os.dup2(fd, number)
            os.close(fd)
        os.environ.clear()
        os.environ.update(request["env"])
        tempfile.tempdir = None
        os.chdir(request["cwd"])
        _, how, program, *sys.argv[1:] = request["command"]
        if how == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            assert how == "-c", request["command"]
            sys.argv[0] = "-c"
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    for module in sys.argv[2:]:
        __import__(module)
    with socket.socket(fileno=int(sys.argv[1])) as end:
        serve(end)
