"""Starts Python programs from a process that has loaded torch and transformers, which takes a program five seconds.

The program runs in a process of its own, a child of this one, with its own arguments, environment and files. Use it
where a test starts programs for what they do, and not for how they are started.
"""

from __future__ import annotations

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
from types import SimpleNamespace
from typing import Any

MOST_BYTES = 1_000_000  # of a request: arguments and environment
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")  # of `Popen._execute_child`
PR_SET_CHILD_SUBREAPER = 36


class ForkedPython:
    """The process that has loaded `modules`. `subprocess` takes the place of the standard module."""

    def __init__(self, *modules: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.forked_python", str(theirs.fileno()), *modules]
            self._process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        parent = self

        class Popen(subprocess.Popen[Any]):
            def _execute_child(self, *values: Any) -> None:
                given = inspect.signature(subprocess.Popen._execute_child).bind(self, *values).arguments  # type: ignore[attr-defined]
                self.pid = parent._start(given)
                self._child_created = True
                self._close_pipe_fds(*(given[name] for name in PIPES))  # type: ignore[attr-defined]

        self.subprocess: Any = SimpleNamespace(**{**vars(subprocess), "Popen": Popen})

    def _start(self, given: dict[str, Any]) -> int:
        """Start a program as `subprocess.Popen` was told to, and return its process id."""
        env = os.environ if given["env"] is None else given["env"]
        numbers = list(given["pass_fds"])
        own = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        files = [number if fd == -1 else fd for number, fd in enumerate(own)]
        request = {
            "command": given["args"],
            "env": dict(env),
            "cwd": given["cwd"],
            "fds": [0, 1, 2, *numbers],
        }
        # The new process is orphaned at once. The kernel gives it to this one, as long as this is said.
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [*files, *numbers])
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


def run(request: dict[str, Any], fds: list[int]) -> None:
    """Run the program and end this process as Python would."""
    status = 1
    try:
        free = max(request["fds"]) + 1
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, free) for fd in fds]
        for fd in fds:
            os.close(fd)
        for fd, number in zip(high, request["fds"], strict=True):
            os.dup2(fd, number)
            os.close(fd)
        os.environ.clear()
        os.environ.update(request["env"])
        tempfile.tempdir = None
        if request["cwd"] is not None:
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
