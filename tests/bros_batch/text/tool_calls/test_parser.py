"""Tool calls found in text, whole and in pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bros_batch.text.tool_calls.formats import CALL_FORMATS, HERMES, JSON, LLAMA3_JSON, MISTRAL, CallFormat
from bros_batch.text.tool_calls.parser import CallParser

NAMES = ("get_weather", "add", "naïve-name", "x")
Call = tuple[str, str]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
calls = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=6), values, max_size=4)), max_size=4
)
# Text that is no call, and in which no bracket begins one.
texts = st.text(st.characters(exclude_characters="{}[]<>"), max_size=30)
spaces = st.sampled_from(["", " ", "\n", "\n\n  "])


def parsed(form: CallFormat, pieces: Sequence[str], max_calls: int | None = None) -> tuple[str, list[Call]]:
    """Returns the text and the calls that a parser finds, and checks the order of their parts."""
    parser = CallParser(form, frozenset(NAMES), max_calls)
    text, found = "", list[list[str]]()
    for index, piece in enumerate(pieces):
        out = parser.push(piece, final=index == len(pieces) - 1)
        text += out.text
        for call in out.calls:
            if call.name is not None:
                assert call.index == len(found)
                found.append([call.name, ""])
            assert call.index == len(found) - 1
            found[-1][1] += call.arguments
    return text, [(name, arguments) for name, arguments in found]


def rendered(form: CallFormat, data: st.DataObject, asked: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Returns calls as a model writes them, in one of the ways that its form leaves open."""
    style = {"ensure_ascii": data.draw(st.booleans()), "indent": data.draw(st.sampled_from([None, 1]))}
    gap = data.draw(spaces)
    if form is MISTRAL and data.draw(st.booleans()):
        middle = data.draw(st.sampled_from(["[ARGS]", "", "[CALL_ID]a1b2c3d4e[ARGS]"]))
        return "".join(
            f"[TOOL_CALLS]{name}{middle}{json.dumps(arguments, **style)}{gap}" for name, arguments in asked
        )
    objects = [
        json.dumps({"name": name, form.arguments_key: arguments}, **style) for name, arguments in asked
    ]
    if form is HERMES:
        return gap.join(f"<tool_call>{gap}{each}{gap}</tool_call>" for each in objects)
    if form is MISTRAL:
        return f"[TOOL_CALLS]{gap}[{', '.join(objects)}]"
    if form is LLAMA3_JSON:
        return data.draw(st.sampled_from(["", "<|python_tag|>"])) + f";{gap}".join(objects)
    return f"[{', '.join(objects)}]" if len(objects) != 1 or data.draw(st.booleans()) else objects[0]


def split(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("form", CALL_FORMATS.values(), ids=CALL_FORMATS)
@given(data=st.data())
def test_calls_are_found_wherever_the_text_is_split(form: CallFormat, data: st.DataObject) -> None:
    asked = data.draw(calls.filter(bool))
    before = "" if form.is_bare else data.draw(texts)
    text = before + data.draw(spaces) + rendered(form, data, asked) + data.draw(spaces)
    whole = parsed(form, [text])
    assert whole[0] == before.rstrip(" \t\r\n")
    assert [(name, json.loads(arguments)) for name, arguments in whole[1]] == asked
    assert parsed(form, split(text, data)) == whole
    assert parsed(form, list(text)) == whole
    assert parsed(form, [text], max_calls=1) == (whole[0], whole[1][:1])


@pytest.mark.parametrize("form", CALL_FORMATS.values(), ids=CALL_FORMATS)
@given(data=st.data())
def test_text_without_calls_stays_as_it_is(form: CallFormat, data: st.DataObject) -> None:
    text = data.draw(texts)
    assert parsed(form, split(text, data)) == (text, [])


PARTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "{", "}", "[", "]", ",", ";", ":", '"',
     '{"name": "add", "arguments": {"a": 1}}', '"name": "add"', '"arguments": {', "\\", "\n", " ", "add", "é"]
)  # fmt: skip


@pytest.mark.parametrize("form", CALL_FORMATS.values(), ids=CALL_FORMATS)
@given(data=st.data())
def test_any_text_gives_the_same_in_pieces(form: CallFormat, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(PARTS, max_size=25)))
    whole = parsed(form, [text])
    assert parsed(form, split(text, data)) == whole
    assert parsed(form, list(text) or [""]) == whole


@pytest.mark.parametrize(
    ("form", "text", "shown", "found"),
    [
        (HERMES, "<tool_call>nothing</tool_call>", "<tool_call>nothing</tool_call>", []),
        (HERMES, '<tool_call>{"name": "add"', '<tool_call>{"name": "add"', []),
        (HERMES, '<tool_call>{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),
        (HERMES, '<tool_call>{"name": "new", "arguments": {}}}\n</tool_call>', "", [("new", "{}")]),
        (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call> So.', "So.", [("add", '{"a": 1}')]),
        (HERMES, '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", '{"a": 1}')]),
        (HERMES, '<tool_call>{"name": "add"}\n{"name": "x"}</tool_ca', "", [("add", "{}"), ("x", "{}")]),
        (HERMES, '<tool_call>{"name": "x", "arguments": {}, "arguments": {1}}', "{1}}", [("x", "{}")]),
        (MISTRAL, '[TOOL_CALLS]add[ARGS]{"a": "x\n\\\ny"}', "", [("add", '{"a": "x\\n\\ny"}')]),
        (MISTRAL, "[TOOL_CALLS] nothing", " nothing", []),
        (MISTRAL, "[TOOL_CALLS]I will not call {x}", "I will not call {x}", []),
        (MISTRAL, '[TOOL_CALLS]add[ARGS] so {"a": 1}', 'add[ARGS] so {"a": 1}', []),
        (LLAMA3_JSON, '{"name": "add", "age": 3}', '{"name": "add", "age": 3}', []),
        (LLAMA3_JSON, '{"name": "unknown", "parameters": {}}', '{"name": "unknown", "parameters": {}}', []),
        (LLAMA3_JSON, '<|python_tag|>print("x")', 'print("x")', []),
        (LLAMA3_JSON, 'So: {"name": "add", "parameters": {}}', 'So: {"name": "add", "parameters": {}}', []),
        (JSON, '{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}', "", [("add", '{"a": 1}')]),
        (JSON, '[1, 2, {"name": "add"}]', '[1, 2, {"name": "add"}]', []),
        (JSON, "[link](x)", "[link](x)", []),
    ],
)  # fmt: skip
def test_what_models_write(form: CallFormat, text: str, shown: str, found: list[Call]) -> None:
    assert parsed(form, [text]) == (shown, found)
    assert parsed(form, list(text)) == (shown, found)
