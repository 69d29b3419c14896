"""A file whose first lines were already read."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO


class HeadedStream(io.RawIOBase):
    """Replays a head that was already read, then the rest of the stream, and passes the size of each read to `on_read`.

    With `size`, the length of the file, it returns exactly that many bytes, even if the file grows meanwhile, and has a
    `fileno`, from which the HTTP client learns the length of its request.
    """

    def __init__(
        self, head: bytes, rest: IO[bytes], on_read: Callable[[int], None], size: int | None = None
    ) -> None:
        self._head = memoryview(head)
        self._rest = rest
        self._on_read = on_read
        self._size = size
        self._left = size

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._size is None:
            raise io.UnsupportedOperation("the length is unknown")
        return self._rest.fileno()

    def read(self, size: int = -1) -> bytes:
        if self._left is not None:
            size = self._left if size < 0 else min(size, self._left)
        if self._head:
            end = len(self._head) if size < 0 else size
            piece, self._head = bytes(self._head[:end]), self._head[end:]
        else:
            piece = self._rest.read(size)
        if self._left is not None:
            self._left -= len(piece)
        self._on_read(len(piece))
        return piece
