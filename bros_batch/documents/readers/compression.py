"""Compressed files: unpacked while they are read, and never into more than a bounded multiple of their size."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from functools import partial
from typing import BinaryIO, cast

from bros_batch.documents.readers.byte_source import ByteSource, Counted
from bros_batch.documents.readers.table import UnreadableTable

# A text of one repeated line is the most that gzip shrinks, to a thousandth. What is small may be anything.
MAX_RATIO = 1000
SMALL_BYTES = 1024**3
MAX_LAYERS = 3


def _zstd(stream: BinaryIO) -> BinaryIO:
    import zstandard

    return cast("BinaryIO", zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True))


_FORMATS: tuple[tuple[bytes, str, str, Callable[[BinaryIO], BinaryIO]], ...] = (
    (b"\x1f\x8b", "gzip", ".gz", lambda stream: cast("BinaryIO", gzip.GzipFile(fileobj=stream))),
    (b"\x28\xb5\x2f\xfd", "zstd", ".zst", _zstd),
    (b"BZh", "bzip2", ".bz2", lambda stream: cast("BinaryIO", bz2.BZ2File(stream))),
    (b"\xfd7zXZ\x00", "xz", ".xz", lambda stream: cast("BinaryIO", lzma.LZMAFile(stream))),  # noqa: SIM115
)


def unpacked(source: ByteSource) -> ByteSource:
    """Return the source itself, or what it holds if it is compressed."""
    for _ in range(MAX_LAYERS):
        found = next((each for each in _FORMATS if source.head.startswith(each[0])), None)
        if found is None:
            return source
        _, kind, suffix, opener = found
        file_name = source.file_name
        if file_name.lower().endswith(suffix):
            file_name = file_name[: -len(suffix)]
        packed = Counted(source.stream(), lambda error: None)
        stream = Unpacked(source.name, kind, opener(cast("BinaryIO", packed)), partial(_bytes_read, packed))
        source = ByteSource(source.name, cast("BinaryIO", stream), source.resources, file_name)
    raise UnreadableTable(f"{source.name} is compressed more than {MAX_LAYERS} times; unpack it first.")


def _bytes_read(packed: Counted) -> int:
    return packed.bytes_read


class Unpacked(Counted):
    """The content of a compressed stream. Raises UnreadableTable if it is damaged or of no reasonable size."""

    def __init__(self, name: str, kind: str, content: BinaryIO, packed_bytes: Callable[[], int]) -> None:
        super().__init__(
            content,
            lambda error: (
                None
                if isinstance(error, MemoryError)
                else f"{name} is damaged: its {kind} data cannot be unpacked ({str(error).lower().rstrip('.')})."
            ),
        )
        self._name = name
        self._kind = kind
        self._packed_bytes = packed_bytes

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        if self.bytes_read > max(SMALL_BYTES, self._packed_bytes() * MAX_RATIO):
            raise UnreadableTable(
                f"{self._name} unpacks to more than {MAX_RATIO} times its size, as only a harmful {self._kind} file "
                "does; unpack it yourself if you trust it."
            )
        return data
