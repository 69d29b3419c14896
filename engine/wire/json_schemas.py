"""JSON schemas as the engine compiles them: every schema in one plain form.

`compilable` reduces a schema of any draft to a small, self-contained one of the present draft: only keywords that the
grammar enforces, and references to its own `$defs` only. `schema_walk.py` finds what remains, `schema_keywords.py` says
what is supported, and `schema_errors.py` puts a compiler's errors into the words of the schema.

The edge checks a schema here before it sends anything, and the engine before it compiles.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from engine.wire.schema_keywords import UnusableSchema, unusable
from engine.wire.schema_walk import SchemaWalk

OPTIONS_KEYWORD = "x-guidance"
WHITESPACE_OPTION = "whitespace_flexible"
# Without \\u in strings: a key that is written with it could repeat one of the properties without its schema.
# With a limit to white space: models that have lost the thread write line breaks for as long as they may.
GRAMMAR_OPTIONS = {"json_allowed_escapes": 'nrbtf\\"', "whitespace_pattern": r"[ \t\r\n]{0,20}"}


def compilable(schema: Any) -> dict[str, Any]:
    """Return the plain form of `schema`, with the options of its grammar. Raises UnusableSchema.

    A schema may have one option of its own, `"x-guidance": {"whitespace_flexible": false}`: no white space in outputs.
    """
    plain = SchemaWalk(schema).plain()
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
        raise unusable(f"'{OPTIONS_KEYWORD}' has an option other than '{WHITESPACE_OPTION}'", ())
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
        return encoded(compilable(decoded(text))), None
    except UnusableSchema as error:
        return "", str(error)


def decoded(text: str) -> Any:
    """Return the value of a JSON text. Raises UnusableSchema if it is none."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UnusableSchema(f"The schema is not valid JSON: {error}.") from None


def encoded(plain: dict[str, Any] | bool) -> str:
    """Return a plain schema as JSON text."""
    return msgspec.json.encode(plain).decode()
