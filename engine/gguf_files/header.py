"""Reads the header of a GGUF file: its metadata, and the table of its tensors, with every length checked.

The reader of the `gguf` package makes an array object of every word of the vocabulary, which takes up to half a
minute. This one skips what is long.

    "GGUF" | version, number of tensors, number of entries | entries | table of tensors | padding | tensors
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from engine.runner.base import UnsupportedModel

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_MAX_DIMENSIONS = 4
# How many values of an array are kept: arrays with a value per layer are shorter, vocabularies are longer.
_MAX_KEPT = 1024


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: its type as the `gguf` package numbers them, and its shape with the rows first."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    start: int  # in the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about its model."""

    path: Path
    metadata: Mapping[str, Any]  # without long arrays
    array_lengths: Mapping[str, int]  # of all arrays
    entries: Mapping[str, bytes]  # of `metadata`, as the file has them
    tensors: Mapping[str, StoredTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def vocab_size(self) -> int:
        """The number of logits."""
        stated = self.metadata.get(f"{self.architecture}.vocab_size")
        return stated if isinstance(stated, int) else self.array_lengths["tokenizer.ggml.tokens"]


def read_header(path: Path) -> GgufHeader:
    """Reads a file's header. Raises UnsupportedModel, which says what is wrong with the file, or OSError."""
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] != MAGIC:
            raise UnsupportedModel(
                f"{path} is not a GGUF file; set --model to a GGUF file or a model directory"
            )
        if len(start) < 8:
            raise _damaged(path)
        version: int = struct.unpack("<I", start[4:])[0]
        if version not in _VERSIONS:
            raise UnsupportedModel(
                f"{path} has version {version} of the GGUF format (or another byte order); convert the model again "
                "with a current llama.cpp"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                header = _Reader(data, 8).header(path)
            except (struct.error, EOFError, UnicodeDecodeError, OverflowError) as error:
                raise _damaged(path) from error
    _check(header, path.stat().st_size)
    return header


def _damaged(path: Path) -> UnsupportedModel:
    return UnsupportedModel(f"{path} is incomplete or damaged; download it again")


def _check(header: GgufHeader, num_bytes: int) -> None:
    path = header.path
    if not isinstance(header.metadata.get("general.architecture"), str):
        raise UnsupportedModel(
            f"{path} does not name its architecture (general.architecture); use another file"
        )
    parts = header.metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise UnsupportedModel(
            f"{path} is one of {parts} parts of a model; join them with llama.cpp's `llama-gguf-split --merge`"
        )
    if not header.tensors:
        raise UnsupportedModel(f"{path} holds no weights; use the file that llama.cpp runs")
    if "tokenizer.ggml.tokens" not in header.array_lengths:
        raise UnsupportedModel(f"{path} holds no tokenizer; use a file with one, or a model directory")
    end = max(tensor.start + tensor.num_bytes for tensor in header.tensors.values())
    if end > num_bytes:
        raise UnsupportedModel(
            f"{path} is incomplete: it has {num_bytes:,} bytes, and its tensors end at byte {end:,}; download it again"
        )


class _Reader:
    """Reads values one after another. Raises struct.error or EOFError where the file ends too early."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self._data = data
        self._position = position

    def header(self, path: Path) -> GgufHeader:
        num_tensors, num_entries = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        entries: dict[str, bytes] = {}
        for _ in range(num_entries):
            start = self._position
            key = self._string()
            value, length = self._value(self._number("<I"))
            if length is not None:
                lengths[key] = length
            if length is None or value is not None:
                metadata[key] = value
                entries[key] = self._data[start : self._position]
        table = [self._table_row() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise EOFError
        first = -(-self._position // alignment) * alignment
        tensors = {
            name: self._tensor(path, name, shape, type_id, first + at) for name, shape, type_id, at in table
        }
        return GgufHeader(path, metadata, lengths, entries, tensors)

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._position)
        self._position += struct.calcsize(form)
        return value

    def _skip(self, num_bytes: int) -> None:
        self._position += num_bytes
        if self._position > len(self._data):
            raise EOFError

    def _string(self) -> str:
        length = self._number("<Q")
        start = self._position
        self._skip(length)
        return self._data[start : self._position].decode()

    def _value(self, type_id: int) -> tuple[Any, int | None]:
        """A value, and its length if it is an array. None stands for a long array."""
        if type_id == _STRING:
            return self._string(), None
        if type_id != _ARRAY:
            return self._number(_form(type_id)), None
        element, length = self._number("<I"), self._number("<Q")
        if element == _ARRAY:
            raise EOFError  # no file has arrays of arrays
        if length <= _MAX_KEPT:
            return [self._value(element)[0] for _ in range(length)], length
        if element != _STRING:
            self._skip(length * struct.calcsize(_form(element)))
            return None, length
        for _ in range(length):
            self._skip(self._number("<Q"))
        return None, length

    def _table_row(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        num_dimensions = self._number("<I")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise EOFError
        dimensions = [self._number("<Q") for _ in range(num_dimensions)]
        return name, tuple(reversed(dimensions)), self._number("<I"), self._number("<Q")

    @staticmethod
    def _tensor(path: Path, name: str, shape: tuple[int, ...], type_id: int, start: int) -> StoredTensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            values, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
        except (ValueError, KeyError):
            raise UnsupportedModel(
                f"{path} holds tensors of a type ({type_id}) that the installed package gguf does not know; run "
                "pip install --upgrade gguf, or use a file of another quantization, such as Q4_K_M or Q8_0"
            ) from None
        if shape[-1] % values:
            raise EOFError
        return StoredTensor(name, shape, type_id, start, prod(shape) // values * num_bytes)


def _form(type_id: int) -> str:
    try:
        return _NUMBERS[type_id]
    except KeyError:
        raise EOFError from None  # no such type: what is read here is something else
