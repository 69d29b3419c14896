"""The number of values of a JSON text, counted without parsing it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bros_batch.web.json_shape import MAX_NODES, MAX_VALUES, JsonShape, TooManyValues

TEXTS = st.text(st.sampled_from('ab"\\,:[]{}\n\x01é\U0001f600'), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | TEXTS
VALUES = st.recursive(SCALARS, lambda each: st.lists(each) | st.dictionaries(TEXTS, each), max_leaves=30)


def num_nodes(value: Any) -> int:
    """The number of objects, lists and keys in `value`."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(num_nodes, value.values()))
    return 1 + sum(map(num_nodes, value)) if isinstance(value, list) else 0


@given(VALUES, st.booleans(), st.lists(st.integers(1, 7)), st.booleans())
def test_nodes_are_counted_however_the_text_arrives(
    value: Any, ascii_only: bool, sizes: list[int], spaced: bool
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1 if spaced else None).encode()
    shape = JsonShape()
    rest = text
    for size in sizes:
        shape.feed(rest[:size])
        rest = rest[size:]
    shape.feed(rest)
    assert shape.num_nodes == num_nodes(value)


@pytest.mark.parametrize(
    "text",
    [
        b'{"messages":[' + b",".join([b"0"] * MAX_VALUES) + b"]}",
        b"[" + b",".join([b"[]"] * MAX_NODES) + b"]",
        b"[" * (MAX_NODES + 1),
        b"{" + b",".join(b'"k%d":0' % number for number in range(MAX_NODES)) + b"}",
    ],
)
def test_too_many_values_are_noticed(text: bytes) -> None:
    with pytest.raises(TooManyValues):
        JsonShape().feed(text)


def test_the_contents_of_strings_do_not_count() -> None:
    shape = JsonShape()
    for _ in range(100):
        shape.feed(rb'{"text": "' + rb"[{,:\"\\" * 10_000 + rb'"}')
    assert shape.num_nodes == 200
