"""Frames, cut from a byte stream and written to one, and the addresses that engines listen on.

A frame is a 4-byte big-endian length followed by that many bytes of msgpack, which encode one tagged message.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

# A prompt of three million tokens fits, and nobody waits long while one frame is decoded.
MAX_FRAME_BYTES = 16 * 1024 * 1024
LENGTH_PREFIX = struct.Struct(">I")

_encode = msgspec.msgpack.Encoder().encode


class FrameError(Exception):
    """The byte stream does not follow the protocol, so the connection must be closed."""


class FrameTooLong(ValueError):
    """A message does not fit into one frame."""


def frame(message: msgspec.Struct) -> bytes:
    """Encode one message as a frame: the length prefix and the msgpack body. Raises FrameTooLong, or what
    `engine.wire.decoding.ENCODE_ERRORS` names if the message holds a value that msgpack has no form for."""
    body = _encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameTooLong(f"it takes {len(body)} bytes; at most {MAX_FRAME_BYTES} fit into a frame")
    return LENGTH_PREFIX.pack(len(body)) + body


class FrameReader:
    """Collects bytes and returns complete frames, one at a time, without their length prefixes."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    def add(self, data: bytes) -> None:
        """Take in the next bytes of the stream."""
        self._buffer += data

    def take(self) -> bytes | None:
        """Return the next frame, or None if it is not complete. Raises FrameError if it exceeds the size limit."""
        prefix = LENGTH_PREFIX.size
        if len(self._buffer) < prefix:
            return None
        (length,) = LENGTH_PREFIX.unpack_from(self._buffer)
        if length > self.max_frame_bytes:
            raise FrameError(f"a frame of {length} bytes exceeds the limit of {self.max_frame_bytes}")
        end = prefix + length
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[prefix:end])
        del self._buffer[:end]  # takes constant time: a bytearray can begin later in its memory
        return body


@dataclass(frozen=True, slots=True)
class Address:
    """The address of an engine: the path of a Unix socket, or a TCP host and port."""

    path: str | None = None
    host: str | None = None
    port: int | None = None

    @staticmethod
    def parse(url: str) -> Address:
        """Parse `unix:///path` or `tcp://host:port`. Raises ValueError if `url` is neither."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:  # a bracket without its partner, or a port that is not a number
            parts = None
        if parts is not None and "\0" not in url:
            if parts.scheme == "unix" and parts.path and not parts.netloc:
                return Address(path=parts.path)
            if parts.scheme == "tcp" and host and port is not None and not parts.path.strip("/"):
                return Address(host=host, port=port)
        raise ValueError(f"{url!r} is not an engine address; write unix:///path/to.sock or tcp://host:port")
