"""What `up` tells the operator: on the console, which may block or fail, and in its own log."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bros_batch.up.child_log import RotatingFile

# Shows a message to the operator: (source, message). The source is "up" or the name of a service.
Say = Callable[[str, str], None]

FIRST_NOTE_S = 2.0
MAX_WAITING = 1000
LAST_MESSAGES_S = 1.0


@contextlib.contextmanager
def explained(say: Say, what: str) -> Iterator[None]:
    """Say what this waits for if the block takes a while."""
    note = threading.Timer(FIRST_NOTE_S, say, ("up", f"waiting for {what}"))
    note.daemon = True
    note.start()
    try:
        yield
    finally:
        note.cancel()


class Announcer:
    """A `Say` that never waits: a thread shows the messages, and those of `up` itself also go to a log file.

    A console that nobody reads (a pager, a full pipe) or that fails (a closed pipe, a file on a full disk) costs
    messages. If it were waited for, `up` would neither react to signals nor read what its services write, and they
    would stop at a full pipe in turn.
    """

    def __init__(self, say: Say, log: Path) -> None:
        self._say = say
        self._log = RotatingFile(log)
        self._messages: queue.Queue[tuple[str, str] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._show_all, name="console", daemon=True)
        self._thread.start()

    def __call__(self, source: str, message: str) -> None:
        if source == "up":
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n".encode())
        with contextlib.suppress(queue.Full):
            self._messages.put_nowait((source, message))

    def close(self) -> None:
        """Show the last messages, unless the console blocks."""
        with contextlib.suppress(queue.Full):
            self._messages.put_nowait(None)
            self._thread.join(LAST_MESSAGES_S)
        self._log.close()

    def _show_all(self) -> None:
        while (message := self._messages.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
                self._say(*message)
