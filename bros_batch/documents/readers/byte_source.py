"""Bytes with a name: a file, stdin or an object of a store. Its head can be seen before it is read."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import BinaryIO, cast

from bros_batch.documents.readers.table import UnreadableTable

HEAD_BYTES = 256 * 1024
COPY_BYTES = 1024**2


class ByteSource:
    """A stream that is read once: from its beginning, head included, by `stream` or `seekable`.

    What is opened on the way is closed with `resources`. `file_name` is the last part of the name,
    which decides between formats that look alike.
    """

    def __init__(
        self, name: str, stream: BinaryIO, resources: ExitStack, file_name: str | None = None
    ) -> None:
        self.name = name
        self.file_name = file_name or name.rsplit("/", 1)[-1]
        self.resources = resources
        self.head = _read_head(stream)
        self.is_whole = len(self.head) < HEAD_BYTES
        self._stream = stream

    def stream(self, skip: int = 0) -> BinaryIO:
        """Return the bytes after the first `skip`, which must be in the head."""
        return cast("BinaryIO", io.BufferedReader(_Joined(self.head[skip:], self._stream), COPY_BYTES))

    def seekable(self) -> BinaryIO:
        """Return the bytes as a file in which one can seek: the file itself, or a temporary copy."""
        if self._stream.seekable():
            self._stream.seek(0)
            return self._stream
        copy = self.resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        copy.write(self.head)
        while data := self._stream.read(COPY_BYTES):
            copy.write(data)
        copy.seek(0)
        return cast("BinaryIO", copy)


class Counted(io.RawIOBase):
    """A stream that counts what is read from it, and turns the errors of reading into UnreadableTable."""

    def __init__(self, stream: BinaryIO, explain: Callable[[Exception], str | None]) -> None:
        self.bytes_read = 0
        self._stream = stream
        self._explain = explain

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._stream.read(size)
        except UnreadableTable:
            raise
        except Exception as error:  # each format and each store has errors of its own
            message = self._explain(error)
            if message is None:
                raise
            raise UnreadableTable(message) from None
        self.bytes_read += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Joined(io.RawIOBase):
    """A head and the rest of its stream."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head = memoryview(head)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data: bytes | memoryview = self._head[: len(buffer)]
        if data:
            self._head = self._head[len(data) :]
        else:
            data = self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _read_head(stream: BinaryIO) -> bytes:
    pieces = []
    size = 0
    while size < HEAD_BYTES and (piece := stream.read(HEAD_BYTES - size)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)
