"""The plain form of a JSON schema: its subschemas, those that it refers to, and what is left of each.

Annotations and keywords that JSON Schema does not define are left out, as the specification says. A keyword that it
defines and the grammar cannot enforce is an error that names the keyword and its place, so an answer never breaks a
rule of its schema in silence.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from engine.wire.schema_disjointness import are_disjoint
from engine.wire.schema_keywords import (
    UnusableSchema,
    checked_list,
    checked_pattern,
    own_keywords,
    refuse_unsupported,
    unusable,
)
from engine.wire.schema_references import References, Steps
from engine.wire.schema_uniqueness import restrict_names, with_unique_items

MAX_SUBSCHEMAS = 3_000
MAX_DEPTH = 50  # of subschemas within subschemas; references start anew

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
MAX_NAME_CHARS = 64
ANNOTATIONS = {"title", "description", "examples", "default", "deprecated", "$comment"}


class SchemaWalk:
    """Visits the subschemas of a schema that its grammar depends on, and builds their plain form."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.parts: dict[Steps, list[Steps]] = {}  # of each subschema: what it consists of, and refers to
        self._references = References(root)
        self._definitions: dict[Steps, str] = {}

    def value(self, at: Steps) -> Any:
        return self._references.value(at)

    def plain(self, at: Steps = ()) -> dict[str, Any] | bool:
        self.parts = {}
        self._definitions = {}
        same_value: dict[Steps, set[Steps]] = {}
        plain = self._subschema(self.value(at), at, 0, same_value.setdefault(at, set()))
        definitions: dict[str, Any] = {}
        waiting = list(self._definitions)
        while waiting:
            steps = waiting.pop()
            known = len(self._definitions)
            direct = same_value.setdefault(steps, set())
            name = self._definitions[steps]
            definitions[name] = self._subschema(self.value(steps), steps, 0, direct)
            waiting += list(self._definitions)[known:]
        _refuse_cycles(same_value)
        if definitions:
            assert isinstance(plain, dict)
            plain["$defs"] = definitions
        return plain

    def _subschema(self, schema: Any, at: Steps, depth: int, direct: set[Steps]) -> dict[str, Any] | bool:
        """The plain form of one subschema. Adds to `direct` what it refers to for the same value."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise unusable("A schema must be an object, true or false", at)
        parts = self.parts[at] = []
        if len(self.parts) > MAX_SUBSCHEMAS:
            raise UnusableSchema(f"The schema has more than {MAX_SUBSCHEMAS:,} subschemas.")
        if depth > MAX_DEPTH:
            raise unusable(f"The schema is nested more than {MAX_DEPTH} levels deep", at)
        plain: dict[str, Any] = {}
        reference = schema.get("$ref")
        if reference is not None:
            if not isinstance(reference, str):
                raise unusable("'$ref' must be a string", at)
            target = self._references.target(reference, at)
            if target is None:
                raise unusable(f"'$ref' points to {reference[:80]!r}, which is not in the schema", at)
            direct.add(target)
            parts.append(target)
            plain["$ref"] = f"#/$defs/{self._name_of(target)}"
            if self._references.ignores_siblings:
                return plain
        refuse_unsupported(schema, at)
        plain |= own_keywords(schema, at)
        for steps, value in _parts(schema, at, plain):
            parts.append((*at, *steps))
            is_same_value = steps[0] in ("anyOf", "allOf", "oneOf")
            part = self._subschema(value, (*at, *steps), depth + 1, direct if is_same_value else set())
            _put(plain, steps, part)
        plain = _in_order_of(schema, plain)
        _arrange_items(plain)
        if "propertyNames" in schema:
            names = self._followed(schema["propertyNames"], (*at, "propertyNames"), depth)
            restrict_names(plain, names, at)
        if schema.get("uniqueItems", False) is not False:
            items = schema.get("items", True)
            items = True if isinstance(items, list) else self._followed(items, (*at, "items"), depth)
            plain = with_unique_items(plain, items, at)
        return self._without_one_of(schema, plain, at)

    def _followed(self, schema: Any, at: Steps, depth: int) -> dict[str, Any] | bool:
        """The plain form of a subschema, or if it is no more than a reference, of what that points to."""
        seen = {at}
        while isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
            target = self._references.target(schema["$ref"], at)
            if target is None or target in seen or schema.keys() - ANNOTATIONS != {"$ref"}:
                break
            seen.add(target)
            schema, at = self.value(target), target
        return self._subschema(schema, at, depth + 1, set())

    def _name_of(self, target: Steps) -> str:
        """The name of a definition in the plain form: that which the schema gave it, as far as possible."""
        if target not in self._definitions:
            name = NOT_IN_NAMES.sub("_", target[-1] if target else "root")[:MAX_NAME_CHARS] or "_"
            taken = set(self._definitions.values())
            names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
            self._definitions[target] = next(each for each in names if each not in taken)
        return self._definitions[target]

    def _without_one_of(self, schema: dict[str, Any], plain: dict[str, Any], at: Steps) -> dict[str, Any]:
        """Write `oneOf` as `anyOf` if its schemas exclude each other. The compiler would find that of few only.

        They also do so if each names a value for the property that OpenAPI's `discriminator` names, and the answer has
        that property.
        """
        if "oneOf" not in plain or "anyOf" in plain:
            return plain
        parts = plain["oneOf"]
        places = [(*at, "oneOf", str(index)) for index in range(len(parts))]
        if not are_disjoint(self._references, places):
            discriminator = schema.get("discriminator")
            tag = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
            if not isinstance(tag, str) or not are_disjoint(self._references, places, tag):
                return plain
            parts = [{**part, "required": list({*part.get("required", ()), tag})} for part in parts]
        return {"anyOf" if name == "oneOf" else name: value for name, value in plain.items()} | {
            "anyOf": parts
        }


def _parts(schema: dict[str, Any], at: Steps, plain: dict[str, Any]) -> Iterator[tuple[Steps, Any]]:
    """The subschemas of a schema, each with the steps to it. Puts the lists and maps that hold them into `plain`."""
    for name in ("properties", "patternProperties"):
        if name in schema:
            if not isinstance(schema[name], dict):
                raise unusable(f"'{name}' must be an object", at)
            plain[name] = {}
            for key, value in schema[name].items():
                if name == "patternProperties":
                    checked_pattern(name, key, at)
                yield (name, key), value
    if "additionalProperties" in schema:
        yield ("additionalProperties",), schema["additionalProperties"]
    for name in ("prefixItems", "items", "anyOf", "allOf", "oneOf"):
        value = schema.get(name)
        if name == "items" and not isinstance(value, list):
            continue
        if name in schema:
            plain[name] = []
            for index, each in enumerate(checked_list(name, value, at)):
                yield (name, str(index)), each
    if isinstance(schema.get("items"), dict | bool):
        yield ("items",), schema["items"]
    elif isinstance(schema.get("items"), list) and "additionalItems" in schema:
        yield ("additionalItems",), schema["additionalItems"]
    elif schema.get("items") is not None and not isinstance(schema["items"], list):
        raise unusable("'items' must be a schema or a list of schemas", at)


def _put(plain: dict[str, Any], steps: Steps, part: Any) -> None:
    if len(steps) == 1:
        plain[steps[0]] = part
    elif isinstance(plain[steps[0]], list):
        plain[steps[0]].append(part)
    else:
        plain[steps[0]][steps[1]] = part


def _in_order_of(schema: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Order keywords as their author did: properties come in the order in which the schema first names them."""
    return {name: plain[name] for name in schema if name in plain} | plain


def _arrange_items(plain: dict[str, Any]) -> None:
    """Rename the items of a tuple, as drafts up to 2019-09 write it."""
    if isinstance(plain.get("items"), list):
        plain["prefixItems"] = plain.pop("items")
        if "additionalItems" in plain:
            plain["items"] = plain.pop("additionalItems")


def _refuse_cycles(same_value: dict[Steps, set[Steps]]) -> None:
    """Refuse a schema that says of a value only that it is valid if it is valid."""
    waiting = dict.fromkeys(same_value, 0)
    for targets in same_value.values():
        for target in targets:
            waiting[target] = waiting.get(target, 0) + 1
    free = [steps for steps, count in waiting.items() if count == 0]
    while free:
        steps = free.pop()
        del waiting[steps]
        for target in same_value[steps]:
            waiting[target] -= 1
            if waiting[target] == 0:
                free.append(target)
    if waiting:
        raise unusable("'$ref' leads back to itself without a property or an item in between", min(waiting))
