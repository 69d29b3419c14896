"""Grammars of drawn schemas against an independent validator: no keyword may be silently wrong."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from bros_batch.request_error import RequestError
from tests.schema_matching import accepts_value, drawn_output, matcher_of, values, whole_schemas


@settings(max_examples=150, deadline=None)
@given(whole_schemas(), st.lists(values(), min_size=4, max_size=4), st.integers(0, 2**32))
def test_a_grammar_admits_what_is_valid_and_nothing_else(
    schema: dict[str, Any], instances: list[Any], seed: int
) -> None:
    try:
        matcher = matcher_of(schema)
    except RequestError:
        return  # it names the keyword
    if matcher is None:
        return  # the compiler names it
    validator = Draft202012Validator(schema)
    rng = random.Random(seed)
    for _ in range(3):
        text = drawn_output(matcher, rng)
        if text is not None:
            assert validator.is_valid(json.loads(text)), text
    for instance in instances:
        assert accepts_value(matcher, instance) == validator.is_valid(instance), instance
