"""Rules for names of properties and for repeated items, in keywords that a grammar can enforce."""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

import msgspec

from engine.wire.schema_keywords import MAX_COUNT, unusable
from engine.wire.schema_references import Steps

# There are 326 lists of so many values without a repetition; of one more, 1,957.
MAX_UNIQUE_VALUES = 5


def restrict_names(plain: dict[str, Any], names: dict[str, Any] | bool, at: Steps) -> None:
    """Write the plain form of `propertyNames` as the properties that an object may have."""
    if isinstance(names, dict) and names.get("type", "string") == "string":
        rules = names.keys() - {"type"}
        if not rules:
            return
        if rules in ({"enum"}, {"const"}) and "patternProperties" not in plain:
            listed = names["enum"] if "enum" in names else [names["const"]]
            _allow_only(plain, [each for each in listed if isinstance(each, str)])
            return
        if "patternProperties" not in plain and _allow_pattern(plain, _pattern(names)):
            return
    if names is True:
        return
    raise unusable(
        "'propertyNames' is supported only with 'enum', 'const', or 'pattern', or limits of the length, and not beside "
        "'patternProperties'",
        at,
    )


def _allow_only(plain: dict[str, Any], names: list[str]) -> None:
    others = plain.get("additionalProperties", True)
    properties = plain.setdefault("properties", {})
    for name in properties.keys() - set(names):
        properties[name] = False
    for name in names:
        if others is not False:
            properties.setdefault(name, others)
    plain["additionalProperties"] = False


def _pattern(names: dict[str, Any]) -> str | None:
    rules = names.keys() - {"type"}
    if rules == {"pattern"}:
        return str(names["pattern"])
    if rules <= {"minLength", "maxLength"}:
        most = names.get("maxLength", MAX_COUNT)
        return rf"^[\s\S]{{{names.get('minLength', 0)},{most if most < MAX_COUNT else ''}}}$"
    return None


def _allow_pattern(plain: dict[str, Any], pattern: str | None) -> bool:
    """Allow names with this pattern only. Return whether that can be written."""
    properties, others = plain.get("properties", {}), plain.get("additionalProperties", True)
    # A schema for names with a pattern concerns properties that are named by themselves, too.
    if pattern is None or (properties and others not in (True, False, {})):
        return False
    for name in properties:
        if not name.isascii() or not name.isprintable():  # where kinds of regular expressions differ
            return False
        try:
            if not re.search(pattern, name):
                properties[name] = False
        except re.error:
            return False
    if others is not False:
        plain["patternProperties"] = {pattern: others}
    plain["additionalProperties"] = False
    return True


def with_unique_items(plain: dict[str, Any], items: dict[str, Any] | bool, at: Steps) -> dict[str, Any]:
    """Write an array of few different values, none of which is repeated, as the list of all such arrays."""
    least, most = plain.get("minItems", 0), plain.get("maxItems", MAX_COUNT)
    if most <= 1:
        return plain
    values = _values(items)
    if (
        values is None
        or len(values) > MAX_UNIQUE_VALUES
        or plain.get("type") != "array"
        or plain.keys() & {"prefixItems", "enum", "const"}
    ):
        raise unusable(
            f"'uniqueItems' is supported only for arrays of at most {MAX_UNIQUE_VALUES} values, listed by 'enum'",
            at,
        )
    arrays = [
        list(each) for n in range(least, min(most, len(values)) + 1) for each in permutations(values, n)
    ]
    if not arrays:
        raise unusable(f"No array has {least} different items of {len(values)} values", at)
    rest = {name: value for name, value in plain.items() if name not in ("items", "minItems", "maxItems")}
    return {**rest, "enum": arrays}


def _values(items: dict[str, Any] | bool) -> list[Any] | None:
    """The values that items may have, none of them twice, or None if they are not listed."""
    if not isinstance(items, dict) or not items.keys() <= {"type", "enum", "const"}:
        return None
    if items == {"type": "boolean"}:
        return [False, True]
    listed = [items["const"]] if items.keys() == {"const"} else items.get("enum")
    if listed is None or {"const", "enum"} <= items.keys():
        return None
    kinds = {"string": str, "integer": int, "boolean": bool}
    kind = kinds.get(items["type"]) if isinstance(items.get("type"), str) else None
    if not all(type(each) is kind if "type" in items else _is_plain(each) for each in listed):
        return None
    return list({msgspec.json.encode(each): each for each in listed}.values())


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (str, int, bool)
