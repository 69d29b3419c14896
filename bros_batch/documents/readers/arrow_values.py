"""The values of an Arrow array as values of JSON, from which `ArrowColumn` makes the same array.

JSON has no other numbers than finite ones, so `"NaN"`, `"Infinity"` and `"-Infinity"` stand for these; times are ISO
8601, exact numbers are their digits. Bytes are text, or else a data URL. A map is an object if its keys are different
texts, or else a list of pairs.
"""

from __future__ import annotations

import itertools
import math
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow
import pyarrow.compute
from pyarrow import types

from bros_batch.documents import time_texts
from bros_batch.documents.arrow_types import is_binary, is_list, is_text, type_name
from bros_batch.documents.native_value import bytes_text, native_value
from bros_batch.documents.readers.column_names import column_names

_MILLISECONDS_OF_DAY = 24 * 3600 * 1000


def json_values(array: pyarrow.Array) -> list[Any]:
    """Return the values of JSON that stand for those of an array."""
    kind = array.type
    if types.is_dictionary(kind):
        return json_values(array.dictionary_decode())
    if types.is_run_end_encoded(kind):
        return json_values(pyarrow.compute.run_end_decode(array))
    if isinstance(kind, pyarrow.BaseExtensionType):
        if str(kind) == "extension<arrow.uuid>":
            return [
                None if value is None else str(uuid.UUID(bytes=value)) for value in array.storage.to_pylist()
            ]
        return json_values(array.storage)
    if types.is_struct(kind):
        return _objects(array)
    if types.is_map(kind):
        return _maps(array)
    if is_list(kind):
        return _lists(array)
    if types.is_floating(kind):
        return _floats(array)
    text = _text_of(kind)
    values = _plain(array)
    return values if text is None else [None if value is None else text(value) for value in values]


def column_types(columns: Mapping[str, pyarrow.Array | pyarrow.ChunkedArray]) -> dict[str, str]:
    """The types of columns, with all values of those that are dictionaries."""
    found: dict[str, str] = {}
    for name, column in columns.items():
        categories = None
        if types.is_dictionary(column.type):
            whole = column.unify_dictionaries() if isinstance(column, pyarrow.ChunkedArray) else column
            first = whole.chunk(0) if isinstance(whole, pyarrow.ChunkedArray) and whole.num_chunks else whole
            values = getattr(first, "dictionary", None)  # none without a chunk
            categories = None if values is None else json_values(values)
        if (described := type_name(column.type, categories)) is not None:
            found[name] = described
    return found


def _plain(array: pyarrow.Array) -> list[Any]:
    """The values of a leaf; those of times as whole numbers of their unit."""
    kind = array.type
    if types.is_temporal(kind) and not types.is_interval(kind):
        array = array.view(pyarrow.int64() if kind.bit_width == 64 else pyarrow.int32())
    values: list[Any] = array.to_pylist()
    return values


def _text_of(kind: pyarrow.DataType) -> Callable[[Any], Any] | None:
    """What makes the text for a value of a leaf; None if JSON has the type."""
    if types.is_timestamp(kind):
        zone = None if kind.tz is None else pyarrow.lib.string_to_tzinfo(kind.tz)
        return time_texts.moment_text(kind.unit, zone)
    if types.is_time(kind):
        return time_texts.time_text(kind.unit)
    if types.is_duration(kind):
        return time_texts.duration_text(kind.unit)
    if types.is_date64(kind):
        return lambda value: time_texts.date_text(value // _MILLISECONDS_OF_DAY)
    if types.is_date(kind):
        return time_texts.date_text
    if types.is_decimal(kind):
        return str
    if types.is_integer(kind) or types.is_boolean(kind) or is_text(kind) or types.is_null(kind):
        return None
    return bytes_text if is_binary(kind) else native_value  # of unions and intervals, which no file has


def _floats(array: pyarrow.Array) -> list[Any]:
    """Each with the fewest digits that tell it from others of its type."""
    if types.is_float32(array.type):
        array = array.cast(pyarrow.string()).cast(pyarrow.float64())
    values = array.to_pylist()
    if types.is_float16(array.type):
        values = [None if value is None else _shortest_half(value) for value in values]
    return [value if value is None or math.isfinite(value) else _not_finite(value) for value in values]


def _shortest_half(value: float) -> float:
    if not math.isfinite(value):
        return value
    packed = struct.pack("e", value)
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 5))
    return next((each for each in shorter if abs(each) < 65520 and struct.pack("e", each) == packed), value)


def _not_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _objects(array: pyarrow.Array) -> list[Any]:
    names = _names(array.type)
    fields = [json_values(field) for field in array.flatten()]
    rows: Iterator[Any] = zip(*fields, strict=True) if fields else iter([()] * len(array))
    values = [dict(zip(names, row, strict=True)) for row in rows]
    return _with_nulls(array, values)


def _names(kind: pyarrow.StructType) -> list[str]:
    """The names of fields as keys: no two of them are equal."""
    names = [field.name for field in kind]
    return names if len(set(names)) == len(names) else column_names(names)


def _lists(array: pyarrow.Array) -> list[Any]:
    lengths = pyarrow.compute.list_value_length(array).to_pylist()
    if types.is_fixed_size_list(array.type):  # whose lengths ignore which are null
        lengths = [
            length if valid else None
            for length, valid in zip(lengths, array.is_valid().to_pylist(), strict=True)
        ]
    values = json_values(pyarrow.compute.list_flatten(array))
    return list(_parts(values, lengths))


def _parts(values: Sequence[Any], lengths: Sequence[int | None]) -> Iterator[Any]:
    start = 0
    for length in lengths:
        if length is None:
            yield None
        else:
            yield values[start : start + length]
            start += length


def _maps(array: pyarrow.Array) -> list[Any]:
    offsets = array.offsets.to_pylist()
    first, last = offsets[0], offsets[-1]
    keys = json_values(array.keys.slice(first, last - first))
    items = json_values(array.items.slice(first, last - first))
    pairs = list(zip(keys, items, strict=True))
    places = itertools.pairwise(offsets)
    return _with_nulls(array, [_map(pairs[start - first : end - first]) for start, end in places])


def _map(pairs: Sequence[tuple[Any, Any]]) -> Any:
    found = dict(pairs) if all(type(key) is str for key, _ in pairs) else {}
    return found if len(found) == len(pairs) else [list(pair) for pair in pairs]


def _with_nulls(array: pyarrow.Array, values: list[Any]) -> list[Any]:
    if not array.null_count:
        return values
    return [
        value if valid else None for value, valid in zip(values, array.is_valid().to_pylist(), strict=True)
    ]
