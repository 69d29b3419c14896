"""Schemas and other grammars, and what transformers generates when it is constrained by the same masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from llguidance import LLMatcher
from transformers import LogitsProcessor

from engine.core.terms import Grammar
from engine.grammars.store import Grammars
from engine.wire.json_schemas import compilable_text

_NAME = {"type": "string", "maxLength": 8}

# Small enough that a random model gets to the end of most of them.
SCHEMAS: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"enum": ["red", "green", "blue", 7, None]},
    {"const": {"kind": "invoice", "pages": [1, 2]}},
    {"type": "integer", "minimum": -40, "maximum": 1200},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000},
    _NAME,
    {"type": "string", "minLength": 2, "maxLength": 6},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": ["integer", "null"], "minimum": 0, "maximum": 99},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["a", "b"]}], "items": False, "minItems": 2},
    {
        "type": "object",
        "properties": {"vendor": _NAME, "currency": {"enum": ["EUR", "USD", "CZK"]}, "paid": {"type": "boolean"}},
        "required": ["vendor", "currency", "paid"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}, "c": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "rows": {
                "type": "array",
                "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {"id": {"type": "integer", "minimum": 0, "maximum": 9}, "ok": {"type": "boolean"}},
                    "required": ["id", "ok"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["rows"],
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {"x": {"type": "null"}}, "required": ["x"],
                                     "additionalProperties": False}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]},
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "leaf": {"type": "boolean"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["leaf", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
]  # fmt: skip


def schema_grammar(schema: dict[str, Any], *, compact: bool = False) -> Grammar:
    """The grammar of a schema as the engine's lanes pass it on. With `compact`, there is no white space in outputs."""
    options = {"x-guidance": {"whitespace_flexible": False}} if compact else {}
    return Grammar("json_schema", compilable_text(json.dumps({**schema, **options})))


class Masked(LogitsProcessor):  # type: ignore[misc]
    """Allows the tokens that llguidance allows after the output so far."""

    def __init__(self, matcher: LLMatcher, num_prompt_tokens: int) -> None:
        self._matcher = matcher
        self._num_seen = num_prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        new = input_ids[0, self._num_seen :].tolist()
        assert self._matcher.consume_tokens(new), self._matcher.get_error()
        self._num_seen += len(new)
        bits = int.from_bytes(self._matcher.compute_bitmask(), "little")
        allowed = [token_id for token_id in range(scores.shape[1]) if bits >> token_id & 1]
        masked = torch.full_like(scores, -torch.inf)
        masked[:, allowed] = scores[:, allowed]
        return masked


def generated_under(
    model: Any, grammars: Grammars, grammar: Grammar, prompt: Sequence[int], max_tokens: int
) -> list[int]:
    """The greedy output of transformers itself for a prompt, under the same masks."""
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
            logits_processor=[Masked(grammars.matcher(grammar), len(prompt))],
        )
    return output[0, len(prompt) :].tolist()  # type: ignore[no-any-return]
