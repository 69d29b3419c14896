"""Frames cut from a byte stream, and the addresses that engines listen on."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from engine.wire.protocol import LENGTH_PREFIX, MAX_FRAME_BYTES


class FrameError(Exception):
    """The byte stream does not follow the protocol, so the connection must be closed."""


class FrameReader:
    """Collects bytes and returns complete frames without their length prefixes."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes. Raises FrameError if a frame exceeds the size limit."""
        self._buffer += data
        frames: list[bytes] = []
        start = 0
        prefix = LENGTH_PREFIX.size
        while len(self._buffer) - start >= prefix:
            (length,) = LENGTH_PREFIX.unpack_from(self._buffer, start)
            if length > self._max_frame_bytes:
                raise FrameError(f"a frame of {length} bytes exceeds the limit of {self._max_frame_bytes}")
            end = start + prefix + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[start + prefix : end]))
            start = end
        del self._buffer[:start]
        return frames


@dataclass(frozen=True, slots=True)
class Address:
    """The address of an engine: the path of a Unix socket, or a TCP host and port."""

    path: str | None = None
    host: str | None = None
    port: int | None = None

    @staticmethod
    def parse(url: str) -> Address:
        """Parse `unix:///path` or `tcp://host:port`. Raises ValueError if `url` is neither."""
        parts = urlsplit(url)
        if parts.scheme == "unix" and parts.path and not parts.netloc:
            return Address(path=parts.path)
        if parts.scheme == "tcp" and parts.hostname and parts.port is not None and not parts.path.strip("/"):
            return Address(host=parts.hostname, port=parts.port)
        raise ValueError(f"{url!r} is not an engine address; write unix:///path/to.sock or tcp://host:port")
