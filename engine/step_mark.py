"""The step mark: which bulk requests the engine is computing, in a file that outlives the process.

If the process dies in the middle of a step, the next one finds out which requests may be the cause.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("engine")

_SIZE_BYTES = 1 << 16  # more than the ids of any step take
_HEADER = struct.Struct("<II")  # number of bytes that follow, and whether a suspect is computed by itself


@dataclass(frozen=True, slots=True)
class LastStep:
    """The bulk requests that the previous process was computing when it died. `is_apart`: it was one by itself.

    `is_known` tells whether there was a mark at all.
    """

    request_ids: tuple[str, ...] = ()
    is_apart: bool = False
    is_known: bool = False


class StepMark:
    """A mark in a file of the engine's own, which is made if there is none.

    `last_step` is what a process that died has left; after a regular end there are no requests in it. The mark is in
    mapped memory: to set it takes microseconds, and the operating system keeps it when the process is killed.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be used."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            left = os.pread(file, _SIZE_BYTES, 0)
            # All of it is written now: a page that the disk had no room for would kill the process that maps it.
            os.pwrite(file, bytes(_SIZE_BYTES), 0)
            self._memory = mmap.mmap(file, _SIZE_BYTES)
        finally:
            os.close(file)
        self.last_step = _parsed(left)
        self._request_ids: list[str] = []  # written last, in so many bytes
        self._length = 0

    def set(self, request_ids: Sequence[str], is_apart: bool) -> None:
        """Mark these requests as being computed; with none, the mark is cleared."""
        memory = self._memory
        _HEADER.pack_into(memory, 0, 0, 0)  # until all of it is written
        if not request_ids:
            return
        if request_ids != self._request_ids:  # most steps compute the same requests as the one before
            text = "\n".join(request_ids).encode()[: _SIZE_BYTES - _HEADER.size]
            memory[_HEADER.size : _HEADER.size + len(text)] = text
            self._request_ids, self._length = list(request_ids), len(text)
        _HEADER.pack_into(memory, 0, self._length, is_apart)


def open_step_mark(listen: str, engine_id: str) -> StepMark | None:
    """The step mark of the engine that listens on this address, or None if there is no place for it."""
    path = _path(listen, engine_id)
    if path is None:
        return None
    try:
        return StepMark(path)
    except OSError as error:
        log.warning("%s cannot be used (%s): if this process dies, nobody knows in which step", path, error)
        return None


def _path(listen: str, engine_id: str) -> Path | None:
    """Beside the socket, or, if that is on TCP, in the user's cache directory; None without a home."""
    scheme, _, address = listen.partition("://")
    if scheme == "unix":
        return Path(address).with_suffix(".step")
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    name = engine_id.replace("/", "_").replace("\0", "_")
    return Path(root) / "bros-batch" / "steps" / name


def _parsed(left: bytes) -> LastStep:
    if len(left) < _HEADER.size:
        return LastStep()
    length, is_apart = _HEADER.unpack_from(left)
    text = left[_HEADER.size : _HEADER.size + length].decode(errors="replace")
    return LastStep(tuple(text.split("\n")) if text else (), bool(is_apart), is_known=True)
