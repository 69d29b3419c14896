"""The keywords of a JSON schema that hold no subschemas: which are supported, and what is wrong with their values."""

from __future__ import annotations

from typing import Any

from engine.wire.schema_dates import PATTERNS
from engine.wire.schema_references import Steps, pointer

MAX_PATTERN_CHARS = 5_000
# No output is longer, so larger upper limits mean the same. Lower limits cannot be larger.
MAX_COUNT = 10_000_000

TYPES = ("string", "number", "integer", "boolean", "null", "object", "array")
# Formats that the specification defines. Others are annotations.
ENFORCED_FORMATS = frozenset(
    ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
)
UNSUPPORTED_FORMATS = frozenset(
    (
        *("idn-email", "idn-hostname", "iri", "iri-reference", "json-pointer", "regex"),
        *("relative-json-pointer", "uri-reference", "uri-template"),
    )
)
# Keywords that the grammar cannot enforce, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "not": (False,),
    "contains": (),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "$dynamicRef": (),
    "$recursiveRef": (),
}
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


class UnusableSchema(ValueError):
    """A schema that no grammar can be made of. The message names the keyword and its place in the schema."""


def unusable(what: str, at: Steps) -> UnusableSchema:
    return UnusableSchema(f"{what} (at {pointer(at)}).")


def own_keywords(schema: dict[str, Any], at: Steps) -> dict[str, Any]:
    """The keywords of a schema that hold no subschemas, checked."""
    plain: dict[str, Any] = {}
    if "type" in schema:
        plain["type"] = _checked_type(schema["type"], at)
    if "const" in schema:
        plain["const"] = schema["const"]
    if "enum" in schema:
        plain["enum"] = checked_list("enum", schema["enum"], at)
    for name in COUNTS:
        if name in schema:
            plain[name] = _checked_count(name, schema[name], at)
    plain |= _checked_bounds(schema, at)
    if "pattern" in schema:
        plain["pattern"] = checked_pattern("pattern", schema["pattern"], at)
    if isinstance(schema.get("format"), str):
        if schema["format"] in UNSUPPORTED_FORMATS:
            raise unusable(f"'format' {schema['format']!r} is not supported", at)
        if schema["format"] in ENFORCED_FORMATS:
            plain["format"] = schema["format"]
            if "pattern" not in schema and schema["format"] in PATTERNS:
                plain["pattern"] = PATTERNS[schema["format"]]
    if "required" in schema:
        names = schema["required"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise unusable("'required' must be a list of strings", at)
        plain["required"] = list(dict.fromkeys(names))
    return plain


def refuse_unsupported(schema: dict[str, Any], at: Steps) -> None:
    for name, harmless in UNSUPPORTED.items():
        if name in schema and not any(
            type(schema[name]) is type(each) and schema[name] == each for each in harmless
        ):
            raise unusable(f"'{name}' is not supported", at)
    if "if" in schema and ("then" in schema or "else" in schema):
        raise unusable("'if' is not supported", at)
    # An output may repeat a key, and would then have fewer properties than were counted.
    least = schema.get("minProperties", 0)
    has_free_keys = schema.get("additionalProperties", True) is not False or schema.get("patternProperties")
    required = schema.get("required")
    num_required = (
        len(set(required))
        if isinstance(required, list) and all(isinstance(name, str) for name in required)
        else 0
    )
    if isinstance(least, int | float) and least > max(1, num_required) and has_free_keys:
        raise unusable(
            "'minProperties' greater than 1 is supported only beside 'additionalProperties': false", at
        )


def _checked_type(value: Any, at: Steps) -> Any:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        raise unusable(f"'type' must be one of {', '.join(TYPES)}, or a list of these", at)
    return value


def checked_list(name: str, value: Any, at: Steps) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise unusable(f"'{name}' must be a list that is not empty", at)
    return value


def _checked_count(name: str, value: Any, at: Steps) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
        raise unusable(f"'{name}' must be a whole number that is not negative", at)
    if value > MAX_COUNT and name.startswith("min"):
        raise unusable(f"'{name}' must be at most {MAX_COUNT:,}", at)
    return min(int(value), MAX_COUNT)


def _checked_bounds(schema: dict[str, Any], at: Steps) -> dict[str, Any]:
    """The bounds of a number. In draft 4, an exclusive bound is a flag beside the bound."""
    plain: dict[str, Any] = {}
    for name in ("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        value = schema.get(name)
        if value is None:
            continue
        if isinstance(value, bool) and name.startswith("exclusive"):
            bound = name.removeprefix("exclusive").lower()
            if value and bound in plain:
                plain[name] = plain.pop(bound)
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise unusable(f"'{name}' must be a number", at)
        if name == "multipleOf" and value <= 0:
            raise unusable("'multipleOf' must be greater than 0", at)
        plain[name] = value
    return plain


def checked_pattern(name: str, value: Any, at: Steps) -> str:
    if not isinstance(value, str):
        raise unusable(f"'{name}' must be a string", at)
    if len(value) > MAX_PATTERN_CHARS:
        raise unusable(f"'{name}' has more than {MAX_PATTERN_CHARS:,} characters", at)
    return value
