"""Which JSON schemas are usable, what is wrong with the others, and the plain form in which they are compiled."""

import json

import pytest

from engine.wire.json_schemas import GRAMMAR_OPTIONS, OPTIONS_KEYWORD, compilable, compilable_text
from engine.wire.schema_keywords import MAX_COUNT, UnusableSchema
from engine.wire.schema_walk import MAX_DEPTH, MAX_SUBSCHEMAS

DRAFT_7 = {"$schema": "http://json-schema.org/draft-07/schema#"}
DRAFT_4 = {"$schema": "http://json-schema.org/draft-04/schema#"}


def plain(schema):
    form = compilable(schema)
    assert form.pop(OPTIONS_KEYWORD) == GRAMMAR_OPTIONS
    return form


def problem(schema):
    with pytest.raises(UnusableSchema) as raised:
        compilable(schema)
    return str(raised.value)


def inside(part):
    """A schema that has `part` in the items of one of its properties."""
    return {"type": "object", "properties": {"rows": {"type": "array", "items": part}}}


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("not", {"type": "string"}),
        ("contains", {}),
        ("unevaluatedItems", False),
        ("unevaluatedProperties", False),
        ("dependencies", {"a": ["b"]}),
        ("dependentRequired", {"a": ["b"]}),
        ("dependentSchemas", {"a": {"required": ["b"]}}),
        ("$dynamicRef", "#node"),
        ("$recursiveRef", "#"),
    ],
)
def test_an_unsupported_keyword_is_named_with_its_place(keyword, value):
    assert problem(inside({keyword: value})) == f"'{keyword}' is not supported (at #/properties/rows/items)."


@pytest.mark.parametrize(
    "harmless",
    [
        {"uniqueItems": False},
        {"unevaluatedProperties": True},
        {"propertyNames": True},
        {"propertyNames": {"type": "string", "description": "any name"}},
        {"dependentRequired": {}},
        {"if": {"type": "string"}},
        {"then": False},
        {"minContains": 3},
        {
            "title": "Row",
            "description": "d",
            "examples": [1],
            "default": 1,
            "x-own": {"not": 1},
            "nullable": True,
        },
        {"format": "semver"},
        {"definitions": {"unused": {"not": {}}}},
    ],
)
def test_what_limits_nothing_is_left_out(harmless):
    assert plain({"type": "string", **harmless}) == {"type": "string"}


@pytest.mark.parametrize("format", ["iri", "regex", "uri-reference"])
def test_a_format_of_the_specification_that_is_not_enforced_is_refused(format):
    assert problem(inside({"format": format})) == (
        f"'format' '{format}' is not supported (at #/properties/rows/items)."
    )


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([], "A schema must be an object, true or false (at #)."),
        (False, "No value fits the schema, which is false."),
        ({"type": "any"}, "'type' must be one of string, number"),
        ({"type": []}, "'type' must be one of"),
        ({"enum": []}, "'enum' must be a list that is not empty (at #)."),
        ({"anyOf": {}}, "'anyOf' must be a list that is not empty (at #)."),
        ({"properties": {"a": {"properties": []}}}, "'properties' must be an object (at #/properties/a)."),
        ({"properties": {"a": "string"}}, "A schema must be an object, true or false (at #/properties/a)."),
        (
            {"properties": {"a": {"required": True}}},
            "'required' must be a list of strings (at #/properties/a).",
        ),
        ({"pattern": 5}, "'pattern' must be a string (at #)."),
        ({"pattern": "a" * 5001}, "'pattern' has more than 5,000 characters (at #)."),
        ({"minLength": -1}, "'minLength' must be a whole number that is not negative (at #)."),
        ({"maxItems": 1.5}, "'maxItems' must be a whole number that is not negative (at #)."),
        ({"minItems": MAX_COUNT + 1}, "'minItems' must be at most 10,000,000 (at #)."),
        ({"minimum": "1"}, "'minimum' must be a number (at #)."),
        ({"multipleOf": 0}, "'multipleOf' must be greater than 0 (at #)."),
        ({"items": "string"}, "'items' must be a schema or a list of schemas (at #)."),
        ({"if": {}, "else": {}}, "'if' is not supported (at #)."),
        ({"$ref": "#/$defs/a~1b"}, "'$ref' points to '#/$defs/a~1b', which is not in the schema (at #)."),
        ({"$ref": "http://example.com/a.json"}, "which is not in the schema (at #)."),
        ({"$ref": "http://[/a"}, "which is not in the schema (at #)."),
        (
            {"x-guidance": {"lenient": True}},
            "'x-guidance' has an option other than 'whitespace_flexible' (at #).",
        ),
        ({"minProperties": 2}, "'minProperties' greater than 1 is supported only beside"),
    ],
)
def test_a_schema_that_is_not_valid_is_refused(schema, message):
    assert message in problem(schema)


def test_text_that_is_not_json_is_refused():
    for text in ("", "{", '{"type": "string"} x', "[" * 100_000, "\ud800"):
        with pytest.raises(UnusableSchema, match="The schema is not valid JSON"):
            compilable_text(text)


def test_the_plain_form_of_the_plain_form_is_the_same():
    schema = {"$ref": "#/$defs/A", "$defs": {"A": inside({"$ref": "#/$defs/A"})}}
    once = compilable_text(json.dumps(schema))
    assert compilable_text(once) == once


def test_references_lead_to_definitions_of_the_plain_form():
    part = {"type": "array", "items": {"$ref": "#"}}
    assert plain({"properties": {"a": part, "b": {"$ref": "#/properties/a", "minItems": 1}}}) == {
        "properties": {
            "a": {"type": "array", "items": {"$ref": "#/$defs/root"}},
            "b": {"$ref": "#/$defs/a", "minItems": 1},
        },
        "$defs": {
            "root": {
                "properties": {
                    "a": {"type": "array", "items": {"$ref": "#/$defs/root"}},
                    "b": {"$ref": "#/$defs/a", "minItems": 1},
                }
            },
            "a": {"type": "array", "items": {"$ref": "#/$defs/root"}},
        },
    }


def test_definitions_keep_their_names():
    definitions = {"Cat": {"type": "null"}, "a/b %": {"type": "string"}}
    schema = {
        "$defs": definitions,
        "definitions": {"Cat": {"type": "boolean"}},
        "prefixItems": [
            {"$ref": f"#/{place}"}
            for place in ("$defs/Cat", "definitions/Cat", "$defs/a~1b%20%25", "$defs/Cat")
        ],
    }
    form = plain(schema)
    assert form["$defs"] == {
        "Cat": {"type": "null"},
        "Cat-2": {"type": "boolean"},
        "a_b__": {"type": "string"},
    }
    assert [each["$ref"] for each in form["prefixItems"]] == [
        "#/$defs/Cat",
        "#/$defs/Cat-2",
        "#/$defs/a_b__",
        "#/$defs/Cat",
    ]
    assert compilable(form) == compilable(schema)


@pytest.mark.parametrize(
    ("schema", "reference"),
    [
        ({"$defs": {"a": {"$anchor": "name", "type": "null"}}}, "#name"),
        ({**DRAFT_7, "definitions": {"a": {"$id": "#name", "type": "null"}}}, "#name"),
        ({"$id": "http://x.org/root", "$defs": {"a": {"type": "null"}}}, "http://x.org/root#/$defs/a"),
        ({"$id": "http://x.org/root", "$defs": {"a": {"$id": "other", "type": "null"}}}, "other"),
        ({"$defs": {"a b/c": {"type": "null"}}}, "#/$defs/a%20b~1c"),
        ({"$defs": {"a": [{"type": "string"}, {"type": "null"}]}}, "#/$defs/a/1"),
    ],
)
def test_references_of_all_forms_are_resolved(schema, reference):
    form = plain({**schema, "properties": {"p": {"$ref": reference}}})
    (name,) = form["$defs"]
    assert form == {"properties": {"p": {"$ref": f"#/$defs/{name}"}}, "$defs": {name: {"type": "null"}}}


def test_a_reference_within_a_part_that_has_an_id_is_relative_to_that_part():
    inner = {"$id": "inner", "$defs": {"a": {"type": "null"}}, "items": {"$ref": "#/$defs/a"}}
    form = plain({"$defs": {"a": {"type": "string"}}, "properties": {"p": inner}})
    assert form["$defs"] == {"a": {"type": "null"}}


def test_a_negative_index_is_not_a_place():
    assert "not in the schema" in problem(
        {"$defs": {"a": [{}]}, "properties": {"p": {"$ref": "#/$defs/a/-1"}}}
    )


def test_siblings_of_a_reference_count_as_the_draft_says():
    schema = {"$ref": "#/definitions/a", "maximum": 5, "definitions": {"a": {"type": "integer"}}}
    assert "maximum" in plain(schema)
    assert "maximum" not in plain({**schema, **DRAFT_7})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}},
    ],
)
def test_a_reference_to_itself_for_the_same_value_is_refused(schema):
    assert "'$ref' leads back to itself" in problem(schema)


def test_tuples_and_bounds_of_older_drafts_are_understood():
    assert plain({**DRAFT_7, "items": [{"type": "string"}], "additionalItems": False}) == {
        "prefixItems": [{"type": "string"}],
        "items": False,
    }
    assert plain({"items": {"type": "string"}, "additionalItems": False}) == {"items": {"type": "string"}}
    assert plain({**DRAFT_4, "minimum": 3, "exclusiveMinimum": True}) == {"exclusiveMinimum": 3}
    assert plain({**DRAFT_4, "maximum": 3, "exclusiveMaximum": False}) == {"maximum": 3}


def test_one_of_schemas_that_exclude_each_other_is_any_of_them():
    strings = {"oneOf": [{"type": "string"}, {"type": "null"}]}
    assert plain(strings) == {"anyOf": strings["oneOf"]}
    assert plain({"oneOf": [{"type": "number"}, {"type": "integer"}]}).keys() == {"oneOf"}
    assert plain({**strings, "anyOf": [{}]}).keys() == {"oneOf", "anyOf"}


def test_a_discriminator_makes_its_property_required():
    parts = [{"type": "object", "properties": {"kind": {"const": kind}}} for kind in ("a", "b")]
    assert plain({"oneOf": parts, "discriminator": {"propertyName": "kind"}}) == {
        "anyOf": [{**part, "required": ["kind"]} for part in parts]
    }
    assert plain({"oneOf": parts, "discriminator": {"propertyName": "other"}}).keys() == {"oneOf"}


def test_an_upper_limit_beyond_all_outputs_is_lowered():
    assert plain({"maxLength": 2**40, "minLength": 3.0}) == {"maxLength": MAX_COUNT, "minLength": 3}


def test_keywords_and_properties_keep_their_order():
    form = plain({"anyOf": [{"required": ["a"]}], "properties": {"b": {}, "a": {}}, "type": "object"})
    assert list(form) == ["anyOf", "properties", "type"]
    assert list(form["properties"]) == ["b", "a"]


def test_only_the_option_for_white_space_is_taken_from_a_schema():
    form = compilable({"type": "object", "x-guidance": {"whitespace_flexible": False}})
    escapes = GRAMMAR_OPTIONS["json_allowed_escapes"]
    assert form[OPTIONS_KEYWORD] == {"json_allowed_escapes": escapes, "whitespace_flexible": False}
    assert compilable({"x-guidance": {"json_allowed_escapes": "u"}})[OPTIONS_KEYWORD] == GRAMMAR_OPTIONS


def test_depth_and_size_are_limited():
    deep = {"type": "null"}
    for _ in range(MAX_DEPTH + 1):
        deep = {"items": deep}
    assert f"nested more than {MAX_DEPTH} levels deep" in problem(deep)
    assert "more than 3,000 subschemas" in problem({"anyOf": [{}] * MAX_SUBSCHEMAS})
