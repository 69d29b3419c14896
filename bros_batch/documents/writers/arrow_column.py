"""A column of a type of Arrow, made of the values of JSON that `json_values` has made of one."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow
from pyarrow import types

from bros_batch.documents import time_texts
from bros_batch.documents.arrow_types import is_binary, is_list, is_text
from bros_batch.documents.native_value import text_bytes
from bros_batch.documents.writers.cells import cell_text

_MILLISECONDS_OF_DAY = 24 * 3600 * 1000
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Reader = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class ArrowColumn:
    """A column of a type. `categories` are the values of its dictionary in their order, if they are known."""

    kind: pyarrow.DataType
    categories: Sequence[Any] | None = None

    def array(self, values: Sequence[Any]) -> pyarrow.Array:
        """Return the array that these values of JSON stand for.

        Raises ValueError, TypeError, OverflowError or an error of Arrow if the type does not have one of them.
        """
        if types.is_dictionary(self.kind) and self.categories is not None:
            places = {value: place for place, value in enumerate(self.categories)}
            try:
                found = [None if value is None else places[value] for value in values]
            except KeyError as error:
                raise ValueError(f"not a category: {error}") from None
            indices = pyarrow.array(found, self.kind.index_type)
            categories = ArrowColumn(self.kind.value_type).array(self.categories)
            return pyarrow.DictionaryArray.from_arrays(indices, categories, ordered=self.kind.ordered)
        read = reader_of(self.kind)
        return pyarrow.array(values if read is None else _read_all(values, read), self.kind)


def _read_all(values: Sequence[Any], read: Reader) -> list[Any]:
    return [None if value is None else read(value) for value in values]


def reader_of(kind: pyarrow.DataType) -> Reader | None:
    """Return what makes the values that Arrow takes for a type from those of JSON; None if they are the same.

    It raises ValueError, TypeError or AttributeError for a value that the type does not have.
    """
    if isinstance(kind, pyarrow.BaseExtensionType):
        if str(kind) == "extension<arrow.uuid>":
            return lambda value: uuid.UUID(value).bytes
        return reader_of(kind.storage_type)
    if types.is_dictionary(kind):
        return reader_of(kind.value_type)
    if types.is_struct(kind):
        return _object_reader(kind)
    if types.is_map(kind):
        return _map_reader(kind)
    if is_list(kind):
        inner = reader_of(kind.value_type)
        return None if inner is None else lambda value: _read_all(_checked(value, list), inner)
    return _leaf_reader(kind)


def _leaf_reader(kind: pyarrow.DataType) -> Reader | None:
    if types.is_timestamp(kind):
        return time_texts.moment_of(kind.unit, kind.tz is not None)
    if types.is_time(kind):
        return time_texts.time_of(kind.unit)
    if types.is_duration(kind):
        return time_texts.duration_of(kind.unit)
    if types.is_date64(kind):
        return lambda value: time_texts.date_of(value) * _MILLISECONDS_OF_DAY
    if types.is_date(kind):
        return time_texts.date_of
    if types.is_decimal(kind):
        return _decimal
    if types.is_floating(kind):
        return _float
    if is_binary(kind):
        return lambda value: text_bytes(_checked(value, str))
    if is_text(kind):
        return lambda value: value if type(value) is str else cell_text(value)
    return None


def _object_reader(kind: pyarrow.StructType) -> Reader:
    fields = {field.name: reader_of(field.type) for field in kind}
    if len(fields) < kind.num_fields:
        raise ValueError("two fields of a struct have one name, which Arrow makes no values for")

    def read(value: Any) -> dict[str, Any]:
        found: dict[str, Any] = _checked(value, dict)
        if not found.keys() <= fields.keys():
            raise ValueError("an object with other keys")
        return {
            name: value if value is None or (convert := fields[name]) is None else convert(value)
            for name, value in found.items()
        }

    return read


def _map_reader(kind: pyarrow.MapType) -> Reader:
    key_of, item_of = reader_of(kind.key_type), reader_of(kind.item_type)

    def read(value: Any) -> list[tuple[Any, Any]]:
        pairs = value.items() if isinstance(value, dict) else _checked(value, list)
        return [
            (
                key if key_of is None else key_of(key),
                item if item is None or item_of is None else item_of(item),
            )
            for key, item in pairs
        ]

    return read


def _checked(value: Any, expected: type) -> Any:
    if type(value) is not expected:
        raise ValueError(f"not a {expected.__name__}: {value!r}")
    return value


def _float(value: Any) -> float:
    if type(value) is str:
        if value not in _NOT_FINITE:
            raise ValueError(f"not a number: {value}")
        return _NOT_FINITE[value]
    if type(value) is bool:
        raise ValueError(f"not a number: {value}")
    return float(value)


def _decimal(value: Any) -> Decimal:
    try:
        return Decimal(value)
    except InvalidOperation:
        raise ValueError(f"not a decimal: {value}") from None
