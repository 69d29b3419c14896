"""The shape that a request asks of its answer, as the engine's grammar.

Clients write it in one of three ways: OpenAI's `response_format`, vLLM's `structured_outputs`, and vLLM's older fields
`guided_json`, `guided_regex`, `guided_choice` and `guided_grammar`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import msgspec

from bros_batch.openai_api.request_fields import NOTHING, is_one_of
from bros_batch.request_error import RequestError
from engine.wire.json_schemas import OPTIONS_KEYWORD, compilable_text, without_white_space
from engine.wire.request_terms import MAX_GRAMMAR_CHARS, Grammar
from engine.wire.schema_keywords import UnusableSchema

JSON_OBJECT = {"type": "object"}
FORMATS = ("text", "json_object", "json_schema")
CONSTRAINTS = ("json", "json_object", "regex", "choice", "grammar")
UNSUPPORTED_OPTIONS = ("structural_tag", "whitespace_pattern", "disable_additional_properties")
MAX_GBNF_CHARS = 16 * 1024  # it is translated in Python
SYNTAX = frozenset(r"\.+*?()|[]{}^$#&-~/")  # of regular expressions


class Shaped(Protocol):
    """A request with the fields of `SHAPES`."""

    @property
    def model_fields_set(self) -> set[str]: ...


def requested_grammar(request: Shaped) -> tuple[Grammar, str] | None:
    """Return the grammar that `request` asks for and the field that does, or None.

    Raises RequestError for a field that is not valid, and for two that ask for a grammar.
    """
    if SHAPES.keys().isdisjoint(request.model_fields_set):  # as for most requests
        return None
    requested = [found for name, read in SHAPES.items() for found in read(getattr(request, name))]
    if not requested:
        return None
    if len(requested) > 1:
        names = " and ".join(f"'{param}'" for _, param in requested[:2])
        raise RequestError(
            f"An answer can have only one shape, but both {names} ask for one.", requested[1][1]
        )
    grammar, param = requested[0]
    if len(grammar.text) > MAX_GRAMMAR_CHARS:
        raise RequestError(f"'{param}' is longer than {MAX_GRAMMAR_CHARS:,} characters.", param)
    return grammar, param


def schema_grammar(schema: Any, param: str, *, may_have_spaces: bool = True) -> Grammar:
    """Return the grammar of a JSON schema, given as a value or as JSON text. Raises RequestError for `param`."""
    try:
        if not isinstance(schema, str):
            schema = msgspec.json.encode(schema).decode()
        if len(schema) > MAX_GRAMMAR_CHARS:
            raise RequestError(f"'{param}' is longer than {MAX_GRAMMAR_CHARS:,} characters.", param)
        text = compilable_text(schema)
        if not may_have_spaces:
            plain = msgspec.json.decode(text)
            plain[OPTIONS_KEYWORD] = without_white_space()
            text = msgspec.json.encode(plain).decode()
        return Grammar("json_schema", text)
    except UnusableSchema as error:
        raise RequestError(f"'{param}' is not a usable JSON schema: {_lowered(str(error))}", param) from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError) as error:
        raise RequestError(f"'{param}' cannot be written as JSON: {error}.", param) from None


def choice_grammar(choices: Any, param: str) -> Grammar:
    """Return the grammar of one of several strings. Raises RequestError, which names `param`."""
    if (
        not isinstance(choices, list)
        or not choices
        or not all(isinstance(each, str) and each for each in choices)
    ):
        raise RequestError(f"'{param}' must be a list of strings, none of them empty.", param)
    return Grammar("regex", "|".join(map(literal_regex, choices)))


def literal_regex(text: str) -> str:
    """Return the regular expression that matches `text` only."""
    return "".join(f"\\{char}" if char in SYNTAX else char for char in text)


def _of_format(value: Any) -> Iterator[tuple[Grammar, str]]:
    if is_one_of(value, NOTHING):
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in FORMATS:
        raise RequestError(
            f"'response_format.type' must be one of {', '.join(FORMATS)}.", "response_format.type"
        )
    if kind == "json_object":
        param = "response_format"
        schema = value.get("schema")  # llama.cpp's form of a schema
        if schema is not None:
            param = "response_format.schema"
        yield schema_grammar(JSON_OBJECT if schema is None else schema, param), param
    elif kind == "json_schema":
        param = "response_format.json_schema"
        inner = value.get("json_schema")
        if not isinstance(inner, dict):
            raise RequestError(f"'{param}' must be an object with a 'schema'.", param)
        for name in ("name", "description"):
            if not isinstance(inner.get(name), str | None):
                raise RequestError(f"'{param}.{name}' must be a string.", f"{param}.{name}")
        if not isinstance(inner.get("strict"), bool | None):
            raise RequestError(f"'{param}.strict' must be true or false.", f"{param}.strict")
        schema = inner.get("schema")
        if not isinstance(schema, dict | None):
            raise RequestError(f"'{param}.schema' must be a JSON schema, an object.", f"{param}.schema")
        yield schema_grammar(JSON_OBJECT if schema is None else schema, f"{param}.schema"), f"{param}.schema"


def _of_structured_outputs(value: Any) -> Iterator[tuple[Grammar, str]]:
    param = "structured_outputs"
    if is_one_of(value, NOTHING):
        return
    if not isinstance(value, dict):
        raise RequestError(f"'{param}' must be an object.", param)
    for name in UNSUPPORTED_OPTIONS:
        if not is_one_of(value.get(name), NOTHING):
            raise RequestError(f"'{param}.{name}' is not supported.", f"{param}.{name}")
    no_spaces = value.get("disable_any_whitespace")
    if not isinstance(no_spaces, bool | None):
        raise RequestError(
            f"'{param}.disable_any_whitespace' must be true or false.", f"{param}.disable_any_whitespace"
        )
    for kind in CONSTRAINTS:
        yield from _of_constraint(kind, value.get(kind), f"{param}.{kind}", may_have_spaces=not no_spaces)


def _of_constraint(
    kind: str, value: Any, param: str, *, may_have_spaces: bool = True
) -> Iterator[tuple[Grammar, str]]:
    if value is None or value is False or value == "":
        return
    if kind == "json":
        if not isinstance(value, dict | str):
            raise RequestError(f"'{param}' must be a JSON schema: an object, or its JSON as a string.", param)
        yield schema_grammar(value, param, may_have_spaces=may_have_spaces), param
    elif kind == "json_object":
        if value is not True:
            raise RequestError(f"'{param}' must be true or false.", param)
        yield schema_grammar(JSON_OBJECT, param, may_have_spaces=may_have_spaces), param
    elif kind == "choice":
        yield choice_grammar(value, param), param
    elif not isinstance(value, str):
        raise RequestError(f"'{param}' must be a string.", param)
    elif kind == "regex":
        yield Grammar("regex", value), param
    else:
        yield Grammar("lark", _lark(value, param)), param


def _lark(text: str, param: str) -> str:
    """Return a grammar in Lark. Grammars in GBNF, as llama.cpp and xgrammar read them, are translated."""
    if "::=" not in text:
        return text
    if len(text) > MAX_GBNF_CHARS:
        raise RequestError(f"'{param}' is in GBNF and longer than {MAX_GBNF_CHARS:,} characters.", param)
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(text)
    except Exception as error:  # it raises this for a rule that is missing
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise RequestError(f"'{param}' is not a valid grammar in GBNF: {what}.", param) from None


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


# The fields that say what an answer looks like, and what reads the value of each.
SHAPES: dict[str, Callable[[Any], Iterator[tuple[Grammar, str]]]] = {
    "response_format": _of_format,
    "structured_outputs": _of_structured_outputs,
    **{
        f"guided_{kind}": partial(_of_constraint, kind, param=f"guided_{kind}")
        for kind in ("json", "regex", "choice", "grammar")
    },
}
