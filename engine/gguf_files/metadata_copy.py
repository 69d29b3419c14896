"""A copy of a GGUF file without its vocabulary and weights, from which transformers reads the configuration.

transformers parses all of a file to learn a few numbers, which takes up to a minute for a large vocabulary. The copy
has the same short metadata and the names of all tensors, and is read at once.
"""

from __future__ import annotations

import struct
from pathlib import Path

from engine.gguf_files.header import MAGIC, GgufHeader

_VERSION = 3
_ALIGNMENT = 32
_FLOAT32 = 0  # the type of a tensor
_UINT32 = 4  # the type of an entry


def write_metadata_copy(header: GgufHeader, path: Path) -> None:
    """Writes the copy to `path`. Its tensors have a single value, zero."""
    entries = {key: entry for key, entry in header.entries.items() if key != "general.alignment"}
    key = f"{header.architecture}.vocab_size"
    entries.setdefault(key, _entry(key, header.vocab_size))
    parts = [MAGIC, struct.pack("<IQQ", _VERSION, len(header.tensors), len(entries)), *entries.values()]
    for index, name in enumerate(header.tensors):
        parts += [_string(name), struct.pack("<IQIQ", 1, 1, _FLOAT32, index * _ALIGNMENT)]
    written = b"".join(parts)
    padding = -len(written) % _ALIGNMENT
    path.write_bytes(written + bytes(padding + _ALIGNMENT * len(header.tensors)))


def _entry(key: str, value: int) -> bytes:
    return _string(key) + struct.pack("<II", _UINT32, value)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
