"""Cutting a byte stream into frames, and the addresses both ends understand."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from engine.wire.protocol import LENGTH_PREFIX, MAX_FRAME_BYTES


class FrameError(Exception):
    """The stream does not follow the protocol; the connection can't go on."""


class FrameReader:
    """Collects bytes and hands out whole frames, without their length prefix."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Frames completed by `data`. Raises FrameError on a frame over the size limit."""
        self._buffer += data
        frames: list[bytes] = []
        start = 0
        prefix = LENGTH_PREFIX.size
        while len(self._buffer) - start >= prefix:
            (length,) = LENGTH_PREFIX.unpack_from(self._buffer, start)
            if length > self._max_frame_bytes:
                raise FrameError(f"a frame of {length} bytes is over the limit of {self._max_frame_bytes}")
            end = start + prefix + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[start + prefix : end]))
            start = end
        del self._buffer[:start]
        return frames


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens: a Unix socket's path, or a TCP host and port."""

    path: str | None = None
    host: str | None = None
    port: int | None = None

    @staticmethod
    def parse(url: str) -> Address:
        """From `unix:///path` or `tcp://host:port`. Raises ValueError with what is wrong."""
        parts = urlsplit(url)
        if parts.scheme == "unix" and parts.path and not parts.netloc:
            return Address(path=parts.path)
        if parts.scheme == "tcp" and parts.hostname and parts.port is not None and not parts.path.strip("/"):
            return Address(host=parts.hostname, port=parts.port)
        raise ValueError(f"{url!r} is no engine address; write unix:///path/to.sock or tcp://host:port")
