"""When the schemas of `oneOf` are found to exclude each other."""

import pytest

from engine.wire.schema_disjointness import MAX_SCHEMAS, are_disjoint
from engine.wire.schema_references import References


def tagged(value, **more):
    return {"type": "object", "properties": {"kind": value}, "required": ["kind"], **more}


CAT = tagged({"const": "cat"})
DEFINITIONS = {
    "cat": CAT,
    "dog": tagged({"enum": ["dog", "wolf"]}),
    "self": {"allOf": [{"$ref": "#/$defs/self"}]},
}


def disjoint(*parts, tag=None, **root):
    schema = {"oneOf": list(parts), "$defs": DEFINITIONS, **root}
    places = [("oneOf", str(index)) for index in range(len(parts))]
    return are_disjoint(References(schema), places, tag)


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "string"}, {"type": "integer"}, {"type": ["null", "boolean"]}],
        [{"const": 1}, {"enum": [2, "1"]}, {"const": True}],
        [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        [CAT, {"allOf": [{"$ref": "#/$defs/dog"}, {"properties": {"age": {"type": "integer"}}}]}],
        [tagged({"$ref": "#/$defs/a"}), tagged({"const": "b"})],
        [{"type": "array"}, CAT, {"type": "null"}],
        [{"type": "string", "enum": ["a"]}, {"type": "string", "enum": ["b"]}],
    ],
)
def test_schemas_that_exclude_each_other(parts):
    assert disjoint(*parts, **{"$defs": {**DEFINITIONS, "a": {"const": "a"}}})


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "number"}, {"type": "integer"}],
        [{"const": 1}, {"const": 1.0}],
        [True, {"type": "string"}],
        [{}, {"type": "string"}],
        [CAT, {"type": "object"}],
        [CAT, tagged({"enum": ["cat", "lion"]})],
        [CAT, {**tagged({"const": "dog"}), "required": []}],
        [{**CAT, "type": ["object", "null"]}, {**tagged({"const": "dog"}), "type": ["object", "null"]}],
        [{"$ref": "#/$defs/self"}, {"$ref": "#/$defs/self"}],
        [{"const": {"a": 1}}, {"const": {"a": 2}}],  # they exclude each other, but objects are not compared
        [{"const": index} for index in range(MAX_SCHEMAS + 1)],
    ],
)
def test_schemas_that_may_overlap(parts):
    assert not disjoint(*parts)


def test_a_tag_that_is_not_required_counts_only_if_it_is_named():
    parts = [{"type": "object", "properties": {"kind": {"const": kind}}} for kind in ("a", "b")]
    assert not disjoint(*parts)
    assert disjoint(*parts, tag="kind")
    assert not disjoint(*parts, tag="other")
