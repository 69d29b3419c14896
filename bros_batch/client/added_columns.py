"""Columns to add, written in words, from which the schema of the answers and a part of the prompt are made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bros_batch.client.bad_input import BadInput

EXAMPLE = '"total: number, with tax"'
TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
}
MAX_OPTIONS = 500
_TYPE = "|".join(TYPES)
_GRAMMAR = re.compile(
    rf"(?:(?P<type>{_TYPE})|list(?:\s+of\s+(?P<each>{_TYPE})s?)?|one\s+of\s+(?P<options>[^|,]+(?:\|[^|,]+)+))"
    r"\s*(?P<optional>\?)?\s*(?:,\s*(?P<about>.*))?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column to add: its part of the schema, and what the model is told about it."""

    name: str
    schema: dict[str, Any]
    instruction: str


def column(text: str) -> Column:
    """Read `NAME`, `NAME: MEANING`, `NAME: TYPE` or `NAME: TYPE, MEANING`."""
    name, _, rest = (part.strip() for part in text.partition(":"))
    if not name:
        raise BadInput(f'The column "{text[:80]}" needs a name, such as {EXAMPLE}.')
    found = _GRAMMAR.fullmatch(rest)
    if found is None:
        if rest.startswith("one of ") and "," not in rest:
            raise BadInput(
                f'The column "{text[:80]}" needs at least two options, such as "kind: one of invoice|letter".'
            )
        return Column(name, {**TYPES["text"], **_described(rest)}, f"- {name}{rest and ': '}{rest}")
    schema, words = _type_of(found, text)
    about = (found["about"] or "").strip()
    if found["optional"]:
        words += ", or null if there is none"
        schema = {"anyOf": [schema, {"type": "null"}]}
    return Column(name, {**schema, **_described(about)}, f"- {name} ({words}){about and ': '}{about}")


def _type_of(found: re.Match[str], text: str) -> tuple[dict[str, Any], str]:
    if found["type"] is not None:
        words = "date as YYYY-MM-DD" if found["type"] == "date" else found["type"]
        return dict(TYPES[found["type"]]), words
    if found["options"] is not None:
        options = [option.strip() for option in found["options"].split("|")]
        if not all(options) or len(set(options)) < len(options) or len(options) > MAX_OPTIONS:
            raise BadInput(
                f'The column "{text[:80]}" needs different options, at most {MAX_OPTIONS} of them.'
            )
        return {"type": "string", "enum": options}, f"one of: {', '.join(options)}"
    each = found["each"] or "text"
    return {"type": "array", "items": dict(TYPES[each])}, f"list of {each}"


def _described(about: str) -> dict[str, str]:
    return {"description": about} if about else {}


def columns_format(texts: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the `response_format` for these columns, and the end of the prompt that explains them.

    The end is a part of a template, in which braces are doubled.
    """
    columns = [column(text) for text in texts]
    names = [each.name for each in columns]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"Two columns have the name {name!r}.")
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
