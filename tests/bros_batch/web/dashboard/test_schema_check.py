"""An answer is checked against its schema within a limit of time, whatever the schema says."""

from __future__ import annotations

from typing import Any

import pytest

from bros_batch.web.dashboard.schema_check import MAX_SHOWN, schema_breaks

LONG_S = 60  # for checks that end by themselves
SCHEMA = {
    "type": "object",
    "properties": {
        "vendor": {"type": "string", "minLength": 2},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
        "due": {"type": "string", "format": "date"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "uniqueItems": True},
    },
    "required": ["vendor", "total"],
    "additionalProperties": False,
    "$defs": {"line": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}},
}


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def test_each_place_is_named() -> None:
    lines = [{"n": 1}, {"n": 0}, {"n": "x"}]
    answer = {"vendor": "A", "code": "Ab", "due": "2024-02-30", "lines": lines, "total": 1}
    assert schema_breaks(SCHEMA, answer, LONG_S) == [
        "The answer: 'total' is not among the properties",
        "code: 'Ab' does not match '^[A-Z]{2}$'",
        "due: '2024-02-30' is not a 'date'",
        "lines[1].n: 0 is less than the minimum of 1",
        "lines[2].n: 'x' is not of type 'integer'",
        "1 more places.",
    ]
    good = {**SCHEMA, "required": ["vendor"]}
    assert schema_breaks(good, {"vendor": "AB", "lines": [{"n": 1}, {"n": 2}]}, LONG_S) == []
    assert schema_breaks(good, {"vendor": "AB", "lines": [{}, {}]}, LONG_S) == [
        "lines: some of its items are equal"
    ]


def test_other_names_of_properties_and_the_number_of_sentences() -> None:
    schema = {"patternProperties": {"^x": {"type": "number"}}, "additionalProperties": {"type": "string"}}
    assert schema_breaks(schema, {"x1": "a", "y": 1, "x2": 1, "z": "b"}, LONG_S) == [
        "x1: 'a' is not of type 'number'",
        "y: 1 is not of type 'string'",
    ]
    found = schema_breaks({"items": {"type": "null"}}, list(range(100)), LONG_S)
    assert found is not None and len(found) == MAX_SHOWN + 1 and found[-1] == "95 more places."


ENDLESS = {
    "a pattern": ({"pattern": "^(a|aa)+$"}, "a" * 200 + "b"),
    "a pattern of names": ({"patternProperties": {"^(a|aa)+$": {}}}, {"a" * 200 + "b": 1}),
    "alternatives": (
        {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/b"}]}},
                      "b": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "array", "minItems": 1}]}},
        },
        nested(60),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_a_check_without_an_end_is_given_up(name: str) -> None:
    schema, answer = ENDLESS[name]
    assert schema_breaks(schema, answer, 0.2) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "#/$defs/none"},
        {"type": "nonsense"},
        {"pattern": "("},
        {"required": 1},
        {"properties": []},
        {"minimum": "x"},
        {"multipleOf": 0},
        5,
    ],
)
def test_a_schema_that_is_not_valid_breaks_nothing(schema: Any) -> None:
    for answer in (1, "a", {"a": 1}, [1]):
        schema_breaks(schema, answer, LONG_S)
