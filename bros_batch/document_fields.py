"""The field of a document that a name means, in a template and wherever else users name fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_INDEX_DIGITS = 10
# What stands for the value of a field that a document does not have; its own values may be None.
NO_FIELD: Any = object()
# What the name of a place in a template cannot contain.
_UNNAMEABLE = re.compile(r'[{}"]')


def found_field(document: Mapping[str, Any], name: str) -> Any:
    """Return the value that a name means, or NO_FIELD.

    A name is that of a field; or else a path into nested values, such as `order.id` or `items.0.name`; or else a name
    that differs from that of a field only in spaces and line breaks, and in the characters that no template can name.
    """
    if name in document:
        return document[name]
    value = _nested(document, name.split("."))
    if value is not NO_FIELD:
        return value
    plain = plain_name(name)
    return next((document[each] for each in document if plain_name(each) == plain), NO_FIELD)


def _nested(value: Any, path: Sequence[str]) -> Any:
    if not path:
        return value
    if isinstance(value, list):
        index = int(path[0]) if path[0].isdecimal() and len(path[0]) < MAX_INDEX_DIGITS else len(value)
        return _nested(value[index], path[1:]) if index < len(value) else NO_FIELD
    if not isinstance(value, Mapping):
        return NO_FIELD
    for end in range(len(path), 0, -1):  # names may have dots themselves
        key = ".".join(path[:end])
        if key in value:
            found = _nested(value[key], path[end:])
            if found is not NO_FIELD:
                return found
    return NO_FIELD


def plain_name(name: str) -> str:
    """Return the name of a field as a template can write it."""
    return " ".join(_UNNAMEABLE.sub("", name).split())
