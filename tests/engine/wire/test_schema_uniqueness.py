"""Names of properties and items without repetition: the grammar accepts what an independent validator accepts."""

from __future__ import annotations

from itertools import product
from typing import Any

import jsonschema
import pytest

from engine.wire.json_schemas import compilable
from engine.wire.schema_keywords import UnusableSchema
from tests.schema_matching import accepts_value, matcher_of

COLORS = {"$defs": {"Color": {"enum": ["red", "green", "blue"], "type": "string"}}}
OBJECTS: list[Any] = [
    {name: value for name, value in zip(names, values, strict=True) if value is not None}
    for names in (("red", "green"), ("red", "x9"), ("id", "red"), ("id", "x9"), ("", "blue"))
    for values in product((None, 1, "s"), repeat=2)
]


@pytest.mark.parametrize(
    "schema",
    [
        {**COLORS, "additionalProperties": {"type": "integer"}, "propertyNames": {"$ref": "#/$defs/Color"}},
        {"propertyNames": {"enum": ["red", "id", 7]}, "properties": {"id": {"type": "integer"}, "x9": {}}},
        {"propertyNames": {"const": "red"}, "properties": {"red": {"type": "integer"}}},
        {
            "propertyNames": {"enum": ["red"]},
            "additionalProperties": False,
            "properties": {"id": {}, "red": {}},
        },
        {"propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": {"type": "string"}},
        {
            "propertyNames": {"pattern": "d$"},
            "properties": {"id": {"type": "integer"}, "x9": {"type": "integer"}},
        },
        {"propertyNames": {"minLength": 3}},
        {"propertyNames": {"minLength": 1, "maxLength": 2, "type": "string"}},
        {
            "propertyNames": {"pattern": "x"},
            "additionalProperties": False,
            "properties": {"id": {}, "x9": {}},
        },
        {"propertyNames": {"enum": ["red", "x9"]}, "required": ["red"]},
    ],
)
def test_names(schema: dict[str, Any]) -> None:
    schema = {"type": "object", **schema}
    matcher = matcher_of(schema)
    assert matcher is not None
    validator = jsonschema.Draft202012Validator(schema)
    verdicts = {validator.is_valid(value) for value in OBJECTS}
    assert verdicts == {True, False}
    for value in OBJECTS:
        assert accepts_value(matcher, value) == validator.is_valid(value), value


@pytest.mark.parametrize(
    "schema",
    [
        {**COLORS, "items": {"$ref": "#/$defs/Color"}},
        {"items": {"enum": ["red", 1, True, None, "red"]}, "minItems": 1, "maxItems": 3},
        {"items": {"type": "boolean"}, "minItems": 2},
        {"items": {"const": "red"}},
        {"items": {"type": "string"}, "maxItems": 1},
    ],
)
def test_items(schema: dict[str, Any]) -> None:
    schema = {"type": "array", "uniqueItems": True, **schema}
    matcher = matcher_of(schema)
    assert matcher is not None
    validator = jsonschema.Draft202012Validator(schema)
    values = ("red", "blue", True, False, None, 1)
    for items in [each for n in range(4) for each in product(values, repeat=n)]:
        assert accepts_value(matcher, list(items)) == validator.is_valid(list(items)), items


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"propertyNames": {"not": {"const": "x"}}}, "'not' is not supported (at #/propertyNames)."),
        ({"propertyNames": {"format": "date"}}, "'propertyNames' is supported only with"),
        ({"propertyNames": {"pattern": "a", "minLength": 2}}, "'propertyNames' is supported only with"),
        (
            {"propertyNames": {"pattern": "a"}, "patternProperties": {"b": {}}},
            "'propertyNames' is supported only",
        ),
        (
            {"propertyNames": {"pattern": "é"}, "properties": {"é": {}}},
            "'propertyNames' is supported only with",
        ),
        ({"propertyNames": False}, "'propertyNames' is supported only with"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' is supported only for arrays"),
        ({"uniqueItems": True, "items": {"enum": [1, 2]}}, "'uniqueItems' is supported only for arrays"),
        ({"type": "array", "uniqueItems": True, "items": {"enum": list("abcdef")}}, "at most 5 values"),
        (
            {"type": "array", "uniqueItems": True, "items": {"enum": [[], {}]}},
            "'uniqueItems' is supported only",
        ),
        ({"type": "array", "uniqueItems": True, "items": [{"const": 1}]}, "'uniqueItems' is supported only"),
        (
            {"type": "array", "uniqueItems": True, "items": {"type": "boolean"}, "minItems": 3},
            "No array has 3 different items of 2 values",
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused(schema: dict[str, Any], what: str) -> None:
    with pytest.raises(UnusableSchema) as caught:
        compilable(schema)
    assert what in str(caught.value)
