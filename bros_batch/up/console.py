"""The console of `up`, which never makes it wait."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

MAX_WAITING_BYTES = 1024**2
LAST_WRITES_S = 1.0


class UnblockedStream(io.TextIOBase):
    """A text stream in place of stdout or stderr: a thread writes what it is given.

    A console that nobody reads (a pager, a full pipe) or that fails (a closed pipe, a file on a full disk) costs
    output. A process that waited for it would neither react to signals nor read what its children write, and they would
    stop at a full pipe in turn. Anything may write to stderr, a warning of a library included, so the stream itself
    has to be replaced.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting = bytearray()
        self._is_finished = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="console", daemon=True)
        self._thread.start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        data = text.encode(self.encoding, self.errors or "strict")
        with self._changed:
            if len(self._waiting) + len(data) <= MAX_WAITING_BYTES:
                self._waiting += data
                self._changed.notify()
        return len(text)

    def finish(self) -> None:
        """Write what is left, unless the console blocks."""
        with self._changed:
            self._is_finished = True
            self._changed.notify()
        self._thread.join(LAST_WRITES_S)

    def _write_all(self) -> None:
        # Not through the stream: whoever else uses that, as Python does when it ends, would wait for its lock.
        fd = self._stream.fileno()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_finished)
                data, self._waiting = self._waiting, bytearray()
            if not data:
                return
            with contextlib.suppress(OSError):
                while data:
                    del data[: os.write(fd, data)]


@contextlib.contextmanager
def unblocked_output() -> Iterator[None]:
    """Replace stdout and stderr by streams that never wait."""
    before = sys.stdout, sys.stderr
    for stream in before:
        stream.flush()
    streams = [UnblockedStream(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.finish()
