"""Whether the grammar compiler can compile a JSON schema. The engine finds out by itself; this tells it beforehand."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.wire.json_schemas import compilable
from engine.wire.schema_errors import located
from engine.wire.schema_keywords import UnusableSchema


def schema_problem(schema: Any) -> str | None:
    """Return why no grammar can be made of `schema`, with the keyword and its place, or None if one can."""
    try:
        text = msgspec.json.encode(compilable(schema)).decode()
    except UnusableSchema as error:
        return str(error)
    problem = _compiler_problem(text)
    if problem is None:
        return None
    return located(msgspec.json.encode(schema).decode(), problem, _compiler_problem)


def _compiler_problem(text: str) -> str | None:
    from llguidance import LLMatcher

    return LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text)) or None
