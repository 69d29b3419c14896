"""The types that columns have beyond those of JSON, and the values that the texts of JSON stand for.

A type is `text`, `number`, `integer`, `boolean`, `date`, `datetime`, `time` or `duration`, or for a column of Parquet
that of Arrow, such as `timestamp[ns, tz=UTC]` (see `arrow_types`).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from bros_batch.documents.requested_json import requested_schema
from bros_batch.documents.time_texts import timedelta_of

Reader = Callable[[str], Any]

# A column whose type would be longer has one that fits its values.
MAX_TYPE_CHARS = 16 * 1024

_OF_JSON = {"string": "text", "number": "number", "integer": "integer", "boolean": "boolean"}
_ARROW_KINDS = {
    "timestamp": "datetime",
    "date": "date",
    "time": "time",
    "duration": "duration",
    "decimal": "decimal",
}
_ARROW_KIND = re.compile("timestamp|date|time|duration|decimal")


def answer_types(defaults: Mapping[str, Any]) -> dict[str, str | None] | None:
    """The columns of a job's answers with their types, None for a type that its schema leaves open.

    None for a job whose answers have no columns that are known beforehand.
    """
    try:
        schema = requested_schema(defaults)
    except (msgspec.MsgspecError, AttributeError):
        return None
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or schema.get("type") != "object":
        return None
    return {name: _type_of(each) for name, each in properties.items()}


def _type_of(schema: Any) -> str | None:
    """The type of the values that a schema allows, apart from null."""
    if not isinstance(schema, dict):
        return None
    kinds = schema.get("anyOf")
    if isinstance(kinds, list):
        types = {_type_of(each) for each in kinds if each != {"type": "null"}}
        return types.pop() if len(types) == 1 else None
    kind = schema.get("type")
    if isinstance(kind, list):
        (kind, *others) = [each for each in kind if each != "null"] or [None]
        kind = None if others else kind
    if kind == "string" and schema.get("format") == "date":
        return "date"
    return _OF_JSON.get(kind) if isinstance(kind, str) else None


def reader_of(name: str | None) -> Reader | None:
    """What makes the values of a type from their texts, raising ValueError for others; None if JSON has the type."""
    found = _ARROW_KIND.match(name or "")
    kind = name if name in _READERS else _ARROW_KINDS[found[0]] if found else None
    return _READERS.get(kind) if kind is not None else None


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"not a decimal: {text}") from None


_READERS: dict[str, Reader] = {
    "date": datetime.date.fromisoformat,
    "datetime": datetime.datetime.fromisoformat,
    "time": datetime.time.fromisoformat,
    "duration": timedelta_of,
    "decimal": _decimal,
}
