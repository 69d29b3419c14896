"""JSON schemas as the engine compiles them: what is supported, and every schema in one plain form.

`compilable` reduces a schema of any draft to a small, self-contained one of the present draft: only keywords that the
grammar enforces, and references to its own `$defs` only. Annotations and keywords that JSON Schema does not define are
left out, as the specification says. A keyword that it defines and the grammar cannot enforce is an error that names the
keyword and its place, so an answer never breaks a rule of its schema in silence.

The edge checks a schema here before it sends anything, and the engine before it compiles.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from engine.wire.schema_disjointness import are_disjoint
from engine.wire.schema_references import References, Steps, pointer

MAX_SUBSCHEMAS = 3_000
MAX_DEPTH = 50  # of subschemas within subschemas; references start anew
MAX_COMPILED_TO_LOCATE = 200
MAX_PATTERN_CHARS = 5_000
# No output is longer, so larger upper limits mean the same. Lower limits cannot be larger.
MAX_COUNT = 10_000_000

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
MAX_NAME_CHARS = 64

OPTIONS_KEYWORD = "x-guidance"
WHITESPACE_OPTION = "whitespace_flexible"
# Without \\u in strings: a key that is written with it could repeat one of the properties without its schema.
# With a limit to white space: models that have lost the thread write line breaks for as long as they may.
GRAMMAR_OPTIONS = {"json_allowed_escapes": 'nrbtf\\"', "whitespace_pattern": r"[ \t\r\n]{0,20}"}

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
    "uniqueItems": (False,),
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


def compilable(schema: Any) -> dict[str, Any]:
    """Return the plain form of `schema`, with the options of its grammar. Raises UnusableSchema.

    A schema may have one option of its own, `"x-guidance": {"whitespace_flexible": false}`: no white space in outputs.
    """
    plain = _Walk(schema).plain()
    if plain is False:
        raise UnusableSchema("No value fits the schema, which is false.")
    options = without_white_space() if _forbids_white_space(schema) else GRAMMAR_OPTIONS
    return {**({} if plain is True else plain), OPTIONS_KEYWORD: options}


def without_white_space() -> dict[str, Any]:
    """Return the options of a grammar whose outputs have no white space."""
    return {"json_allowed_escapes": GRAMMAR_OPTIONS["json_allowed_escapes"], WHITESPACE_OPTION: False}


def _forbids_white_space(schema: Any) -> bool:
    options = schema.get(OPTIONS_KEYWORD) if isinstance(schema, dict) else None
    if options is None:
        return False
    if not isinstance(options, dict) or not options.keys() <= {WHITESPACE_OPTION, *GRAMMAR_OPTIONS}:
        raise _unusable(f"'{OPTIONS_KEYWORD}' has an option other than '{WHITESPACE_OPTION}'", ())
    return options.get(WHITESPACE_OPTION) is False


def compilable_text(text: str) -> str:
    """Return the plain form of a schema that is given as JSON text, as JSON text. Raises UnusableSchema."""
    plain, problem = _cached(text)
    if problem is not None:
        raise UnusableSchema(problem)
    return plain


@lru_cache(maxsize=64)
def _cached(text: str) -> tuple[str, str | None]:
    try:
        return _encoded(compilable(decoded(text))), None
    except UnusableSchema as error:
        return "", str(error)


def decoded(text: str) -> Any:
    """Return the value of a JSON text. Raises UnusableSchema if it is none."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UnusableSchema(f"The schema is not valid JSON: {error}.") from None


def located(text: str, problem: str, problem_of: Callable[[str], str | None]) -> str:
    """Return why the grammar compiler refuses a schema, with the innermost place that it refuses by itself.

    `problem` is its message for the whole. `problem_of` compiles a plain schema, given as text, and returns the
    compiler's message, or None for success.
    """
    walk = _Walk(decoded(text))
    walk.plain()
    parts = walk.parts
    place: Steps = ()
    waiting, seen = parts.get(place, []), {place}
    for _ in range(MAX_COMPILED_TO_LOCATE):
        if not waiting:
            break
        part, waiting = waiting[0], waiting[1:]
        inner = None if part in seen or part not in parts else problem_of(_encoded(walk.plain(part)))
        seen.add(part)
        if inner is not None:
            place, problem, waiting = part, inner, parts[part]
    return _explained(problem, walk.value(place), place)


def _encoded(plain: dict[str, Any] | bool) -> str:
    return msgspec.json.encode(plain).decode()


def _explained(problem: str, schema: Any, at: Steps) -> str:
    """A compiler's message in the words of a schema's author."""
    lines = problem.strip().splitlines()
    if "regex parse error" in problem:
        name = (
            "patternProperties" if isinstance(schema, dict) and "patternProperties" in schema else "pattern"
        )
        return str(_unusable(f"'{name}' is not supported: {lines[-1].removeprefix('error: ')[:200]}", at))
    if problem.startswith("oneOf"):
        what = (
            "'oneOf' is supported only if its schemas exclude each other, by 'type' or by a required property"
        )
        return str(_unusable(f"{what} with a different 'const' in each", at))
    if "patternProperty" in problem:
        return str(_unusable(f"'patternProperties' is not supported: {lines[0][:200]}", at))
    if problem.startswith("Unsatisfiable schema: "):
        return str(_unusable(f"No value fits the schema: {lines[0][22:222]}", at))
    return str(_unusable(lines[0][:300], at))


class _Walk:
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
            raise _unusable("A schema must be an object, true or false", at)
        parts = self.parts[at] = []
        if len(self.parts) > MAX_SUBSCHEMAS:
            raise UnusableSchema(f"The schema has more than {MAX_SUBSCHEMAS:,} subschemas.")
        if depth > MAX_DEPTH:
            raise _unusable(f"The schema is nested more than {MAX_DEPTH} levels deep", at)
        plain: dict[str, Any] = {}
        reference = schema.get("$ref")
        if reference is not None:
            if not isinstance(reference, str):
                raise _unusable("'$ref' must be a string", at)
            target = self._references.target(reference, at)
            if target is None:
                raise _unusable(f"'$ref' points to {reference[:80]!r}, which is not in the schema", at)
            direct.add(target)
            parts.append(target)
            plain["$ref"] = f"#/$defs/{self._name_of(target)}"
            if self._references.ignores_siblings:
                return plain
        _refuse_unsupported(schema, at)
        plain |= _own_keywords(schema, at)
        for steps, value in _parts(schema, at, plain):
            parts.append((*at, *steps))
            is_same_value = steps[0] in ("anyOf", "allOf", "oneOf")
            part = self._subschema(value, (*at, *steps), depth + 1, direct if is_same_value else set())
            _put(plain, steps, part)
        plain = _in_order_of(schema, plain)
        _arrange_items(plain)
        return self._without_one_of(schema, plain, at)

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


def _own_keywords(schema: dict[str, Any], at: Steps) -> dict[str, Any]:
    """The keywords of a schema that hold no subschemas, checked."""
    plain: dict[str, Any] = {}
    if "type" in schema:
        plain["type"] = _checked_type(schema["type"], at)
    if "const" in schema:
        plain["const"] = schema["const"]
    if "enum" in schema:
        plain["enum"] = _checked_list("enum", schema["enum"], at)
    for name in COUNTS:
        if name in schema:
            plain[name] = _checked_count(name, schema[name], at)
    plain |= _checked_bounds(schema, at)
    if "pattern" in schema:
        plain["pattern"] = _checked_pattern("pattern", schema["pattern"], at)
    if isinstance(schema.get("format"), str):
        if schema["format"] in UNSUPPORTED_FORMATS:
            raise _unusable(f"'format' {schema['format']!r} is not supported", at)
        if schema["format"] in ENFORCED_FORMATS:
            plain["format"] = schema["format"]
    if "required" in schema:
        names = schema["required"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _unusable("'required' must be a list of strings", at)
        plain["required"] = list(dict.fromkeys(names))
    return plain


def _parts(schema: dict[str, Any], at: Steps, plain: dict[str, Any]) -> Iterator[tuple[Steps, Any]]:
    """The subschemas of a schema, each with the steps to it. Puts the lists and maps that hold them into `plain`."""
    for name in ("properties", "patternProperties"):
        if name in schema:
            if not isinstance(schema[name], dict):
                raise _unusable(f"'{name}' must be an object", at)
            plain[name] = {}
            for key, value in schema[name].items():
                if name == "patternProperties":
                    _checked_pattern(name, key, at)
                yield (name, key), value
    if "additionalProperties" in schema:
        yield ("additionalProperties",), schema["additionalProperties"]
    for name in ("prefixItems", "items", "anyOf", "allOf", "oneOf"):
        value = schema.get(name)
        if name == "items" and not isinstance(value, list):
            continue
        if name in schema:
            plain[name] = []
            for index, each in enumerate(_checked_list(name, value, at)):
                yield (name, str(index)), each
    if isinstance(schema.get("items"), dict | bool):
        yield ("items",), schema["items"]
    elif isinstance(schema.get("items"), list) and "additionalItems" in schema:
        yield ("additionalItems",), schema["additionalItems"]
    elif schema.get("items") is not None and not isinstance(schema["items"], list):
        raise _unusable("'items' must be a schema or a list of schemas", at)


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


def _refuse_unsupported(schema: dict[str, Any], at: Steps) -> None:
    for name, harmless in UNSUPPORTED.items():
        if name in schema and not any(
            type(schema[name]) is type(each) and schema[name] == each for each in harmless
        ):
            raise _unusable(f"'{name}' is not supported", at)
    if "if" in schema and ("then" in schema or "else" in schema):
        raise _unusable("'if' is not supported", at)
    if schema.get("propertyNames", True) not in (True, {}):
        raise _unusable("'propertyNames' is not supported", at)
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
        raise _unusable(
            "'minProperties' greater than 1 is supported only beside 'additionalProperties': false", at
        )


def _checked_type(value: Any, at: Steps) -> Any:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        raise _unusable(f"'type' must be one of {', '.join(TYPES)}, or a list of these", at)
    return value


def _checked_list(name: str, value: Any, at: Steps) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise _unusable(f"'{name}' must be a list that is not empty", at)
    return value


def _checked_count(name: str, value: Any, at: Steps) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
        raise _unusable(f"'{name}' must be a whole number that is not negative", at)
    if value > MAX_COUNT and name.startswith("min"):
        raise _unusable(f"'{name}' must be at most {MAX_COUNT:,}", at)
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
            raise _unusable(f"'{name}' must be a number", at)
        if name == "multipleOf" and value <= 0:
            raise _unusable("'multipleOf' must be greater than 0", at)
        plain[name] = value
    return plain


def _checked_pattern(name: str, value: Any, at: Steps) -> str:
    if not isinstance(value, str):
        raise _unusable(f"'{name}' must be a string", at)
    if len(value) > MAX_PATTERN_CHARS:
        raise _unusable(f"'{name}' has more than {MAX_PATTERN_CHARS:,} characters", at)
    return value


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
        raise _unusable("'$ref' leads back to itself without a property or an item in between", min(waiting))


def _unusable(what: str, at: Steps) -> UnusableSchema:
    return UnusableSchema(f"{what} (at {pointer(at)}).")
