"""Matchers of JSON schemas for tests, and the schemas, instances and outputs that tests draw."""

from __future__ import annotations

import json
import random
from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from bros_batch.openai_api.grammars import schema_grammar
from bros_batch.settings import DEMO_MODEL_DIR

NAMES = ("a", "b", "c", 'd"\n')
STRINGS = (
    "",
    "a",
    "ab",
    "b1",
    "é",
    "x y",
    "\nb",
    "2024-02-29",
)  # Python's $ also matches before a line break at the end
NUMBERS = (0, 1, -1, 2, 3, 1.0, 0.5, -2.5, 1e3, 12, 100)


@cache
def tokenizer() -> LLTokenizer:
    return LLTokenizer((Path(DEMO_MODEL_DIR) / "tokenizer.json").read_text())


def matcher_of(schema: Any) -> LLMatcher | None:
    """The matcher of a schema at its beginning, or None if the compiler refuses it. Raises RequestError as the edge."""
    text = schema_grammar(schema, "schema").text
    matcher = LLMatcher(tokenizer(), LLMatcher.grammar_from_json_schema(text), log_level=0)
    return None if matcher.is_error() else matcher


def accepts(matcher: LLMatcher, text: str) -> bool:
    matcher = matcher.deep_copy()
    tokens = tokenizer().tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def accepts_value(matcher: LLMatcher, value: Any) -> bool:
    """Whether the matcher accepts a value in some order of its properties, which a grammar fixes."""
    return any(accepts(matcher, json.dumps(each, ensure_ascii=False)) for each in _orders(value))


def _orders(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [list(each) for each in product(*map(_orders, value))]
    if not isinstance(value, dict):
        return [int(value)] if isinstance(value, float) and value.is_integer() else [value]
    found = []
    for names in permutations(value):
        found += [
            dict(zip(names, each, strict=True)) for each in product(*(_orders(value[name]) for name in names))
        ]
    return found


def drawn_output(matcher: LLMatcher, rng: random.Random, max_tokens: int = 60) -> str | None:
    """A random text that the matcher lets a model write, or None if it has no end within `max_tokens`."""
    matcher = matcher.deep_copy()
    tokens: list[int] = []
    for _ in range(max_tokens):
        if matcher.is_accepting() and (matcher.is_stopped() or rng.random() < 0.5):
            return str(tokenizer().decode_str(tokens))
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[: tokenizer().vocab_size])
        allowed = allowed[allowed != tokenizer().eos_token]
        if not len(allowed):
            return str(tokenizer().decode_str(tokens)) if matcher.is_accepting() else None
        token = int(_preferred(allowed, rng))
        assert matcher.consume_token(token), matcher.get_error()
        tokens.append(token)
    return None


def _preferred(allowed: Any, rng: random.Random) -> int:
    """One of the allowed tokens; often one that ends something, so that outputs end."""
    closing = [
        token for token in allowed[:400] if tokenizer().decode_bytes([int(token)]) in (b'"', b"}", b"]", b",")
    ]
    return int(rng.choice(closing if closing and rng.random() < 0.5 else list(allowed)))


def values(depth: int = 2) -> st.SearchStrategy[Any]:
    scalars = st.sampled_from((None, True, False, *STRINGS, *NUMBERS))
    if depth == 0:
        return scalars
    parts = values(depth - 1)
    return st.one_of(
        scalars,
        st.lists(parts, max_size=3),
        st.dictionaries(st.sampled_from(NAMES), parts, max_size=3),
    )


def schemas(depth: int = 2) -> st.SearchStrategy[Any]:
    """Schemas of the keywords that the grammar enforces, in combinations that people rarely write."""
    bound = st.sampled_from((-1, 0, 0.5, 1, 2, 3))
    count = st.integers(0, 3)
    leaves: dict[str, st.SearchStrategy[Any]] = {
        "type": st.one_of(
            st.sampled_from(TYPES), st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True)
        ),
        "enum": st.lists(values(1), min_size=1, max_size=3),
        "const": values(1),
        "minimum": bound,
        "maximum": bound,
        "exclusiveMinimum": bound,
        "exclusiveMaximum": bound,
        "multipleOf": st.sampled_from((1, 2, 0.5)),
        "minLength": count,
        "maxLength": count,
        "pattern": st.sampled_from(("^a", "b", "^[a-z0-9]*$", "^.{1,2}$", "1$")),
        "minItems": count,
        "maxItems": count,
        "minProperties": st.integers(0, 2),
        "maxProperties": count,
        "required": st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
    }
    nested: dict[str, st.SearchStrategy[Any]] = {}
    if depth > 0:
        part = schemas(depth - 1)
        parts = st.lists(part, min_size=1, max_size=3)
        nested = {
            "properties": st.dictionaries(st.sampled_from(NAMES), part, min_size=1, max_size=3),
            "additionalProperties": part,
            "patternProperties": st.dictionaries(st.sampled_from(("^a", "^[bc]", "1$")), part, max_size=2),
            "items": part,
            "prefixItems": parts,
            "anyOf": parts,
            "allOf": parts,
            "oneOf": parts,
            "$ref": st.sampled_from(("#", "#/$defs/x", "#/$defs/y")),
        }
    some_leaves = st.sets(st.sampled_from(sorted(leaves)), max_size=2)
    some_parts = st.sets(st.sampled_from(sorted(nested)), max_size=2) if nested else st.just(set())
    keywords = st.tuples(some_leaves, some_parts).map(lambda both: sorted(both[0] | both[1]))
    objects = keywords.flatmap(
        lambda names: st.permutations(names).flatmap(
            lambda names: st.fixed_dictionaries({name: (leaves | nested)[name] for name in names})
        )
    )
    return objects if depth == 2 else st.one_of(objects, objects, objects, st.booleans())


TYPES = ("string", "number", "integer", "boolean", "null", "object", "array")


def whole_schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas with the definitions that their references point to."""
    return st.builds(
        lambda root, x, y: {**root, "$defs": {"x": x, "y": y}}, schemas(), schemas(1), schemas(1)
    )
