"""Columns to add, from which the schema of the answers and a part of the prompt are made."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bros_batch.request_error import RequestError

EXAMPLE = '"total: number, with tax"'
TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
}
# What other languages call the types.
_OTHER_NAMES = {
    **dict.fromkeys(("float", "double", "decimal", "num"), "number"),
    **dict.fromkeys(("str", "string"), "text"),
    **dict.fromkeys(("datetime", "timestamp"), "date"),
    "int": "integer",
    "bool": "boolean",
    "array": "list",
}
# So alike is a typing error, such as "nummer"; "data" and "update" are less like "date".
_TYPO_RATIO = 0.82
MAX_OPTIONS = 500
_TYPE = "|".join(TYPES)
_GRAMMAR = re.compile(
    rf"(?:(?P<type>{_TYPE})|list(?:\s+of\s+(?P<each>{_TYPE})s?)?|one\s+of\s+(?P<options>[^|,]+(?:\|[^|,]+)+))"
    r"\s*(?P<optional>\?)?\s*(?:,\s*(?P<about>.*))?",
    re.DOTALL,
)
_LIKE_TYPE = re.compile(r"(?P<list>list\s+of\s+)?(?P<word>\w{1,20})\s*\??\s*(?:,.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Column:
    """A column to add: its part of the schema, and what the model is told about it."""

    name: str
    schema: dict[str, Any]
    instruction: str


def column(text: str) -> Column:
    """Read `NAME`, `NAME: MEANING`, `NAME: TYPE` or `NAME: TYPE, MEANING`. Raises RequestError."""
    name, _, rest = (part.strip() for part in text.partition(":"))
    if not name:
        raise RequestError(f'The column "{text[:80]}" needs a name, such as {EXAMPLE}.')
    found = _GRAMMAR.fullmatch(rest)
    if found is None:
        if rest.startswith("one of ") and "," not in rest:
            raise _too_few(name)
        _check_no_type(name, rest)
        return typed_column(name, "text", rest)
    about = (found["about"] or "").strip()
    is_optional = found["optional"] is not None
    if found["options"] is not None:
        return choice_column(name, found["options"].split("|"), about, is_optional)
    if found["type"] is not None:
        return typed_column(name, found["type"], about, is_optional)
    return list_column(name, found["each"] or "text", about, is_optional)


def _check_no_type(name: str, about: str) -> None:
    """Raise RequestError for a meaning that seems to be a type: one word, alone or before a comma."""
    found = _LIKE_TYPE.fullmatch(about)
    if found is None:
        return
    word = found["word"].lower()
    meant = _OTHER_NAMES.get(word) or _OTHER_NAMES.get(word.removesuffix("s"))
    if meant is None:
        close = difflib.get_close_matches(word, (*TYPES, "list"), n=1, cutoff=_TYPO_RATIO)
        if not close:
            return
        meant = close[0]
    raise RequestError(
        f'The column "{name[:80]}": "{found["word"]}" is no type; did you mean {found["list"] or ""}{meant}? '
        f'If it is a meaning, write "{name[:80]}: text, {about[:80]}".'
    )


def typed_column(name: str, kind: str, about: str = "", is_optional: bool = False) -> Column:
    """A column whose values have one of the TYPES."""
    if kind == "text" and not is_optional:  # which goes without saying
        return Column(name, {**TYPES[kind], **_described(about)}, f"- {name}{about and ': '}{about}")
    words = "date as YYYY-MM-DD" if kind == "date" else kind
    return _column(name, dict(TYPES[kind]), words, about, is_optional)


def list_column(name: str, each: str, about: str = "", is_optional: bool = False) -> Column:
    """A column whose values are lists of one of the TYPES."""
    return _column(name, {"type": "array", "items": dict(TYPES[each])}, f"list of {each}", about, is_optional)


def choice_column(name: str, options: Sequence[str], about: str = "", is_optional: bool = False) -> Column:
    """A column whose values are among these options. Raises RequestError unless they are different."""
    options = [option.strip() for option in options]
    if not all(options) or len(set(options)) < len(options) or len(options) > MAX_OPTIONS:
        raise RequestError(
            f'The column "{name[:80]}" needs different options, at most {MAX_OPTIONS} of them.'
        )
    if len(options) < 2:
        raise _too_few(name)
    schema = {"type": "string", "enum": options}
    return _column(name, schema, f"one of: {', '.join(options)}", about, is_optional)


def _column(name: str, schema: dict[str, Any], words: str, about: str, is_optional: bool) -> Column:
    if is_optional:
        words += ", or null if there is none"
        schema = {"anyOf": [schema, {"type": "null"}]}
    return Column(name, {**schema, **_described(about)}, f"- {name} ({words}){about and ': '}{about}")


def _too_few(name: str) -> RequestError:
    return RequestError(
        f'The column "{name[:80]}" needs at least two options, such as "kind: one of invoice|letter".'
    )


def _described(about: str) -> dict[str, str]:
    return {"description": about} if about else {}


def columns_format(columns: Sequence[Column]) -> tuple[dict[str, Any], str]:
    """Return the `response_format` for these columns, and the end of the prompt that explains them.

    The end is a part of a template, in which braces are doubled. Raises RequestError if two columns have one name.
    """
    names = [each.name for each in columns]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"Two columns have the name {name!r}.")
    schema = {
        "type": "object",
        "properties": {each.name: each.schema for each in columns},
        "required": names,
        "additionalProperties": False,
    }
    lines = ["Answer with a JSON object that has these keys:", *(each.instruction for each in columns)]
    end = "\n\n" + "\n".join(lines).replace("{", "{{").replace("}", "}}")
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }, end
