"""Pieces of grammars in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re

from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.request_terms import Grammar

ANY_TEXT = r"/(?s:.*)/"
_SYNTAX = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~/]")
_SLASH = re.compile(r"(\\.)|/|\n", re.DOTALL)


def literal(text: str) -> str:
    """Return the rule that matches `text` only."""
    return json.dumps(text, ensure_ascii=False)


def mark(tokenizer: ModelTokenizer, text: str) -> str:
    """Return the rule that matches a mark: the token that the vocabulary has for it, or else its text."""
    token_id = tokenizer.added_token_id(text)
    return literal(text) if token_id is None else f"<[{token_id}]>"


def text_without(mark_text: str) -> str:
    """Return the terminal that matches any text that does not contain `mark_text`."""
    escaped = _SYNTAX.sub(r"\\\g<0>", mark_text)
    return rf"{ANY_TEXT} & ~/(?s:.*){escaped}(?s:.*)/"


def embedded(grammar: Grammar) -> str:
    """Return `grammar` as part of a rule."""
    match grammar.kind:
        case "json_schema":
            return f"%json {grammar.text}"
        case "regex":
            return (
                "/"
                + _SLASH.sub(lambda found: found[1] or {"/": r"\/"}.get(found[0], r"\n"), grammar.text)
                + "/"
            )
        case "lark":
            return f"%lark {{\n{grammar.text}\n}}"
