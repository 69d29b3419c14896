"""What a child process prints: every line to its own size-bounded file, the telling ones to the console."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable
from pathlib import Path

MAX_LOG_BYTES = 10 * 1024**2
KEPT_FILES = 3
MAX_LINE_BYTES = 64 * 1024
TAIL_LINES = 20

# A line worth a person's attention: a level from warnings up, as the loggers of our services write it.
_WARNING = re.compile(r"\b(WARNING|ERROR|CRITICAL|FATAL)\b|^Traceback |^\w*(Error|Exception): ")


# Redis says so on every default Linux, and it does not concern us: we never ask for a background save.
_NO_NEWS = "Memory overcommit must be enabled"


class RotatingFile:
    """An append-only file: past `max_bytes` it becomes NAME.log.1, .1 becomes .2, and so on.

    A full disk loses log lines, never the process that writes them.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES, kept: int = KEPT_FILES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size

    def write(self, line: bytes) -> None:
        if self._file.closed:
            return
        with contextlib.suppress(OSError):
            if self._size > self._max_bytes:
                self._rotate()
            self._size += self._file.write(line)

    def close(self) -> None:
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._kept - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._file = self._path.open("ab", buffering=0)
        self._size = 0


class LogPump(asyncio.Protocol):
    """Reads a child's output pipe. `show` gets the lines that are warnings or worse, or all if `verbose`."""

    def __init__(
        self, file: RotatingFile, tail: deque[str], show: Callable[[str], None], verbose: bool
    ) -> None:
        self._file = file
        self._tail = tail
        self._show = show
        self._verbose = verbose
        self._rest = b""
        self.closed = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._line(line)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._line(self._rest)
        self._rest = b""
        if not self.closed.done():
            self.closed.set_result(None)

    def _line(self, raw: bytes) -> None:
        self._file.write(raw + b"\n")
        text = raw.decode("utf-8", "replace").rstrip()
        if not text:
            return
        self._tail.append(text)
        if self._verbose or (_WARNING.search(text) and _NO_NEWS not in text):
            self._show(text)
