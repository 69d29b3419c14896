"""What `up` tells the operator: on the console and in its own log."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bros_batch.up.child_log import RotatingFile

# Shows a message to the operator: (source, message). The source is "up" or the name of a service.
Say = Callable[[str, str], None]

FIRST_NOTE_S = 2.0


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


@contextlib.contextmanager
def logged(say: Say, log: Path) -> Iterator[Say]:
    """A `Say` that also writes the messages of `up` itself to a log file."""
    file = RotatingFile(log)

    def say_and_log(source: str, message: str) -> None:
        if source == "up":
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n".encode())
        say(source, message)

    try:
        yield say_and_log
    finally:
        file.close()
