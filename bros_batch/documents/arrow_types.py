"""The types of Arrow as texts, by which a job remembers those of its columns.

A simple type has a word of `column_types`, or the name that Arrow gives it, such as `timestamp[ns, tz=UTC]`. Others are
described in JSON:

    {"list": T}                          also large_list, list_view, large_list_view; fixed_size_list has a "size"
    {"struct": [[NAME, T], ...]}
    {"map": [T, T]}
    {"dictionary": T, "indices": T}      with "ordered": true and "values": [...] where these are known

where T is a type, or {"required": T} for values that cannot be null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow
from pyarrow import types

from bros_batch.documents.column_types import MAX_TYPE_CHARS

# A value of a type of a fixed size takes its bytes also where it is null. Vectors of 16,384 numbers fit.
MAX_FIXED_BYTES = 128 * 1024

_WORDS: dict[str, pyarrow.DataType] = {
    "text": pyarrow.string(),
    "number": pyarrow.float64(),
    "integer": pyarrow.int64(),
    "boolean": pyarrow.bool_(),
    "date": pyarrow.date32(),
    "datetime": pyarrow.timestamp("us"),
    "time": pyarrow.time64("us"),
    "duration": pyarrow.duration("us"),
}
# What Arrow calls them, apart from times and durations, which Parquet files rarely have in this unit only.
_WORD_OF = {str(_WORDS[word]): word for word in ("text", "number", "integer", "boolean", "date", "datetime")}
_EXTENSIONS = {
    str(kind): kind
    for kind in (getattr(pyarrow, name)() for name in ("uuid", "json_", "bool8") if hasattr(pyarrow, name))
}
_TIMESTAMP = re.compile(r"timestamp\[(s|ms|us|ns)(?:, tz=(.+))?\]")
_DECIMAL = re.compile(r"decimal(32|64|128|256)\((\d{1,2}), (-?\d{1,2})\)")
_FIXED_BINARY = re.compile(r"fixed_size_binary\[(\d{1,6})\]")
_LISTS: dict[str, tuple[Callable[[pyarrow.DataType], bool], Callable[[pyarrow.Field], pyarrow.DataType]]] = {
    "list": (types.is_list, pyarrow.list_),
    "large_list": (types.is_large_list, pyarrow.large_list),
    "list_view": (types.is_list_view, pyarrow.list_view),
    "large_list_view": (types.is_large_list_view, pyarrow.large_list_view),
}


def type_name(kind: pyarrow.DataType, categories: Sequence[Any] | None = None) -> str | None:
    """Return the text for a type; None for one that is too long, or that no file has.

    `categories` are the values of a dictionary in their order, as values of JSON.
    """
    described = _described(kind)
    if types.is_dictionary(kind) and described is not None and categories is not None:
        with_values = {**described, "ordered": bool(kind.ordered), "values": list(categories)}
        if len(json.dumps(with_values, ensure_ascii=False)) <= MAX_TYPE_CHARS:
            described = with_values
    name = described if isinstance(described, str) else json.dumps(described, ensure_ascii=False)
    return name if described is not None and len(name) <= MAX_TYPE_CHARS else None


def arrow_type(name: str | None) -> pyarrow.DataType | None:
    """Return the type that a text stands for; None if it stands for none that is known, or its size is too large."""
    if name is None:
        return None
    try:
        kind = _kind(json.loads(name) if name.startswith("{") else name)
        return kind if _fixed_bytes(kind) <= MAX_FIXED_BYTES else None
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, pyarrow.ArrowException):
        return None


def categories_of(name: str | None) -> list[Any] | None:
    """Return the values of the dictionary that a type describes, if it does and they are known."""
    if name is None or not name.startswith("{"):
        return None
    try:
        values = json.loads(name).get("values")
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, list) else None


def is_list(kind: pyarrow.DataType) -> bool:
    """Whether the values of a type are lists."""
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def is_text(kind: pyarrow.DataType) -> bool:
    """Whether the values of a type are texts."""
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_binary(kind: pyarrow.DataType) -> bool:
    """Whether the values of a type are bytes."""
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _described(kind: pyarrow.DataType) -> Any:
    name = str(kind)
    if isinstance(kind, pyarrow.BaseExtensionType):
        return name if name in _EXTENSIONS else _described(kind.storage_type)
    for word, (is_one, _) in _LISTS.items():
        if is_one(kind):
            return _of_inner({word: kind.value_field})
    if types.is_fixed_size_list(kind):
        return _of_inner({"fixed_size_list": kind.value_field}, size=kind.list_size)
    if types.is_struct(kind):
        fields = [[field.name, _field(field)] for field in kind]
        return None if any(each is None for _, each in fields) else {"struct": fields}
    if types.is_map(kind):
        pair = [_described(kind.key_type), _field(kind.item_field)]
        return None if None in pair else {"map": pair}
    if types.is_dictionary(kind):
        return _of_inner({"dictionary": kind.value_type, "indices": kind.index_type})
    found = _WORD_OF.get(name, name)
    return found if _kind_of_name(found) == kind else None


def _of_inner(inner: Mapping[str, Any], **others: Any) -> dict[str, Any] | None:
    """A description with the types or fields in it described; None if one of them cannot be."""
    found = {
        word: _field(each) if isinstance(each, pyarrow.Field) else _described(each)
        for word, each in inner.items()
    }
    return None if None in found.values() else {**found, **others}


def _field(field: pyarrow.Field) -> Any:
    described = _described(field.type)
    return described if described is None or field.nullable else {"required": described}


def _fixed_bytes(kind: pyarrow.DataType) -> int:
    """About how many bytes a null of this type takes, or the largest one within it."""
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _fixed_bytes(kind.storage_type)
    if types.is_fixed_size_binary(kind):
        return int(kind.byte_width)
    inner = [kind.field(place).type for place in range(kind.num_fields)]
    if types.is_dictionary(kind):
        inner = [kind.value_type]
    sizes = [_fixed_bytes(each) for each in inner]
    if types.is_fixed_size_list(kind):
        return int(kind.list_size) * sizes[0]
    return max(sum(sizes), 8)


def _kind(described: Any) -> pyarrow.DataType:
    """Raises ValueError, TypeError, KeyError or an error of Arrow for what describes no type."""
    if isinstance(described, str):
        kind = _kind_of_name(described)
        if kind is None:
            raise ValueError(described)
        return kind
    if not isinstance(described, dict):
        raise ValueError(described)
    for word, (_, make) in _LISTS.items():
        if word in described:
            return make(_named("item", described[word]))
    if "fixed_size_list" in described:
        return pyarrow.list_(_named("item", described["fixed_size_list"]), int(described["size"]))
    if "struct" in described:
        return pyarrow.struct([_named(name, each) for name, each in described["struct"]])
    if "map" in described:
        key, item = described["map"]
        return pyarrow.map_(_kind(key), _named("value", item))
    is_ordered = bool(described.get("ordered")) and bool(described.get("values"))
    return pyarrow.dictionary(_kind(described["indices"]), _kind(described["dictionary"]), is_ordered)


def _named(name: str, described: Any) -> pyarrow.Field:
    is_required = isinstance(described, dict) and "required" in described
    kind = _kind(described["required"] if is_required else described)
    return pyarrow.field(name, kind, nullable=not is_required)


def _kind_of_name(name: str) -> pyarrow.DataType | None:
    if name in _WORDS:
        return _WORDS[name]
    if name in _EXTENSIONS:
        return _EXTENSIONS[name]
    if found := _TIMESTAMP.fullmatch(name):
        return pyarrow.timestamp(found[1], found[2])
    if found := _DECIMAL.fullmatch(name):
        return getattr(pyarrow, f"decimal{found[1]}")(int(found[2]), int(found[3]))
    if found := _FIXED_BINARY.fullmatch(name):
        return pyarrow.binary(int(found[1]))
    try:
        return pyarrow.type_for_alias(name)
    except ValueError:
        return None
