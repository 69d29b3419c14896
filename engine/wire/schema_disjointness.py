"""Whether no value fits two of several JSON schemas, so that `oneOf` means the same as `anyOf`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import msgspec

from engine.wire.schema_references import References, Steps

# Beyond these limits, nothing is found to be disjoint. They bound the time that a schema takes.
MAX_SCHEMAS = 100  # which are compared in pairs
MAX_CONJUNCTS = 20
MAX_TAGS = 20
MAX_VALUES = 200
MAX_VALUE_CHARS = 200

TYPES = ("string", "number", "boolean", "null", "object", "array")
Values = frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the values that fit a schema.

    `values` lists them if they are few, and `tags` has the values of those properties that an object must have and
    whose values are few.
    """

    types: frozenset[str]
    values: Values | None
    tags: dict[str, Values]


def are_disjoint(references: References, places: Sequence[Steps], tag: str | None = None) -> bool:
    """Return whether no value fits two of the schemas at `places`. A property named `tag` counts as required."""
    if len(places) > MAX_SCHEMAS:
        return False
    facts = [_facts(references, at, tag) for at in places]
    return all(_excludes(one, other) for one, other in combinations(facts, 2))


def _excludes(one: Facts, other: Facts) -> bool:
    if one.values is not None and other.values is not None and not one.values & other.values:
        return True
    if one.types & other.types - {"object"}:
        return False
    if "object" not in one.types & other.types:
        return True
    return any(not values & other.tags[name] for name, values in one.tags.items() if name in other.tags)


def _facts(references: References, at: Steps, tag: str | None) -> Facts:
    types = frozenset(TYPES)
    names = [] if tag is None else [tag]
    conjuncts = list(_conjuncts(references, at))
    for _, schema in conjuncts:
        types &= _types(schema)
        required = schema.get("required")
        names += [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    tags: dict[str, Values] = {}
    for place, schema in conjuncts:
        properties = schema.get("properties")
        for name in names[:MAX_TAGS]:
            if isinstance(properties, dict) and name in properties:
                values = _values(references, (*place, "properties", name))
                if values is not None:
                    tags[name] = tags.get(name, values) & values
    return Facts(types, _values(references, at), tags)


def _conjuncts(references: References, at: Steps) -> Iterator[tuple[Steps, dict[str, Any]]]:
    """Yield the schemas that a value must fit to fit the one at `at`, which is the first of them."""
    waiting, seen = [at], {at}
    while waiting and len(seen) <= MAX_CONJUNCTS:
        place = waiting.pop()
        schema = references.value(place)
        if not isinstance(schema, dict):
            continue
        found: list[Steps] = []
        reference = schema.get("$ref")
        if isinstance(reference, str):
            target = references.target(reference, place)
            found += [] if target is None else [target]
            if references.ignores_siblings:
                schema = {}
        parts = schema.get("allOf")
        found += [
            (*place, "allOf", str(index)) for index in range(len(parts) if isinstance(parts, list) else 0)
        ]
        yield place, schema
        waiting += [each for each in found if each not in seen]
        seen.update(found)


def _types(schema: dict[str, Any]) -> frozenset[str]:
    named = schema.get("type", TYPES)
    names = [named] if isinstance(named, str) else named if isinstance(named, list | tuple) else TYPES
    return frozenset("number" if name == "integer" else name for name in names if isinstance(name, str))


def _values(references: References, at: Steps) -> Values | None:
    """The values that fit the schema at `at`, as JSON, or more than these; None if they are not listed."""
    listed: Values | None = None
    for _, schema in _conjuncts(references, at):
        enumerated = schema.get("enum")
        values = enumerated if isinstance(enumerated, list) else None
        if "const" in schema:
            values = [schema["const"]]
        if values is not None and len(values) <= MAX_VALUES and all(map(_is_short, values)):
            encoded = frozenset(map(_encoded, values))
            listed = encoded if listed is None else listed & encoded
    return listed


def _is_short(value: Any) -> bool:
    return not isinstance(value, dict | list) and (
        not isinstance(value, str) or len(value) <= MAX_VALUE_CHARS
    )


def _encoded(value: Any) -> bytes:
    """The same bytes for numbers that are equal, such as 1 and 1.0."""
    return msgspec.json.encode(int(value) if isinstance(value, float) and value.is_integer() else value)
