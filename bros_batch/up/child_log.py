"""Logs of child processes: every line goes to a file of bounded size, warnings also go to the console."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable
from io import FileIO
from pathlib import Path

MAX_LOG_BYTES = 10 * 1024**2
KEPT_FILES = 3
MAX_LINE_BYTES = 64 * 1024
TAIL_LINES = 20

# Lines shown on the console: warnings and worse, in the formats of the services' loggers.
_WARNING = re.compile(r"\b(WARNING|ERROR|CRITICAL|FATAL)\b|^Traceback |^\w*(Error|Exception): ")
# Redis prints this on every default Linux. It does not apply here: background saves are disabled.
_IGNORED = "Memory overcommit must be enabled"


class RotatingFile:
    """An append-only log file that is rotated at `max_bytes`: NAME.log becomes NAME.log.1, .1 becomes .2, and so on.

    If the disk is full, log lines are lost until there is space again, but the process that writes them continues.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES, kept: int = KEPT_FILES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._file: FileIO | None = None
        self._size = 0
        self._is_cut = False  # the last line was written in part
        self._is_closed = False

    def write(self, line: bytes) -> None:
        if self._is_closed:
            return
        with contextlib.suppress(OSError):
            if self._file is not None and self._size > self._max_bytes:
                self._rotate()
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
                self._size = self._path.stat().st_size
            line = b"\n" + line if self._is_cut else line
            written = self._file.write(line)
            self._is_cut = written < len(line)
            self._size += written

    def close(self) -> None:
        self._is_closed = True
        if self._file is not None:
            self._file.close()

    def _rotate(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        for number in range(self._kept - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))


class LogPump(asyncio.Protocol):
    """Reads the output pipe of a child. `show` receives warnings and worse, or every line if `verbose`."""

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
            self._take_line(line)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._take_line(self._rest)
        self._rest = b""
        if not self.closed.done():
            self.closed.set_result(None)

    def _take_line(self, raw: bytes) -> None:
        self._file.write(raw + b"\n")
        text = raw.decode("utf-8", "replace").rstrip()
        if not text:
            return
        self._tail.append(text)
        if self._verbose or (_WARNING.search(text) and _IGNORED not in text):
            self._show(text)
