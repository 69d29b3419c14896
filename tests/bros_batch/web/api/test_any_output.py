"""Whatever a model writes, a stream has the message that the whole answer has, and nothing that was written is lost.

The engine's tokens are those of a given text. All that reads them is what users have: detokenizer, parsers, and routes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bros_batch.web.repeating_engine import repeating_web
from tests.bros_batch.web.serving import MODEL_NAME, Web
from tests.factories_tools import ToolStyle, make_tool_model

STYLES: tuple[ToolStyle, ...] = ("hermes", "llama3_json", "mistral", "mistral_named", "json")
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("add", "find")
]
# Words that are searched for in the message. None begins with another.
WORD = re.compile(r"w\d{3}w")
MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>", "</think>")


@pytest.fixture(scope="module", params=STYLES)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ToolStyle, Web]]:
    directory = tmp_path_factory.mktemp("tools")
    model = make_tool_model(directory / "model", request.param, reasoning="model_opens")
    with repeating_web(directory, model) as web:
        yield request.param, web


@dataclass
class Message:
    """A message as a client has it, put together from the deltas of a stream, or from a whole answer."""

    finish_reason: str | None = None
    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def add(self, part: dict[str, Any]) -> None:
        self.content += part.get("content") or ""
        self.reasoning += part.get("reasoning_content") or ""
        for number, call in enumerate(part.get("tool_calls") or ()):
            function = call["function"]
            if function.get("name"):
                assert call.get("index", number) == len(self.calls) and call["id"]
                self.calls.append([function["name"], ""])
            self.calls[-1][1] += function["arguments"]

    @property
    def words(self) -> list[str]:
        return sorted(
            WORD.findall(
                "\n".join([self.content, self.reasoning, *(part for call in self.calls for part in call)])
            )
        )


def answers(web: Web, text: str, **fields: Any) -> tuple[Message, int]:
    """Return the message that a model gives which writes `text`, and the pieces in which it was streamed."""
    body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": text}], "tools": TOOLS, **fields}
    whole, streamed = Message(), Message()
    num_pieces = 0
    with web.http() as client:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        whole.add(choice["message"])
        whole.finish_reason = choice["finish_reason"]
        lines = client.post("/v1/chat/completions", json={**body, "stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    for line in lines[:-2]:
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        streamed.add(choice["delta"])
        streamed.finish_reason = choice["finish_reason"] or streamed.finish_reason
        num_pieces += 1
    assert streamed == whole
    return whole, num_pieces


def call(style: ToolStyle, name: str, arguments: str) -> str:
    """Return a call as a model of this style writes it."""
    match style:
        case "hermes":
            return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
        case "llama3_json":
            return f'{{"name": "{name}", "parameters": {arguments}}}'
        case "mistral":
            return f'[TOOL_CALLS][{{"name": "{name}", "arguments": {arguments}}}]'
        case "mistral_named":
            return f"[TOOL_CALLS]{name}[ARGS]{arguments}"
        case "json":
            return f'{{"name": "{name}", "arguments": {arguments}}}'


def test_a_call_within_the_reasoning_is_reasoning(served: tuple[ToolStyle, Web]) -> None:
    style, web = served
    inner, outer = call(style, "add", '{"a": "w001w"}'), call(style, "find", '{"b": "w002w"}')
    message, num_pieces = answers(web, f"<think>Perhaps {inner} or not.</think>{outer}")
    assert message.calls == [["find", '{"b": "w002w"}']]
    assert "w001w" in message.reasoning and message.reasoning.endswith("or not.")
    assert (message.content, message.finish_reason) == ("", "tool_calls")
    assert num_pieces > 20  # each token has a piece of its own


def test_reasoning_that_does_not_end_has_no_calls(served: tuple[ToolStyle, Web]) -> None:
    style, web = served
    message, _ = answers(web, f"<think>w001w {call(style, 'add', '{}')}")
    assert (message.calls, message.content, message.finish_reason) == ([], "", "stop")
    assert message.reasoning.startswith("w001w")


def test_a_call_that_a_limit_cuts_has_what_there_is_of_it(served: tuple[ToolStyle, Web]) -> None:
    style, web = served
    text = call(style, "add", '{"a": "' + "one two three " * 20 + '"}')
    message, _ = answers(web, text, max_tokens=70)
    assert message.finish_reason == "length"
    ((name, arguments),) = message.calls
    assert name == "add" and arguments.startswith('{"a": "one two') and not arguments.endswith("}")


def test_arguments_are_json_also_where_models_write_them_otherwise(served: tuple[ToolStyle, Web]) -> None:
    style, web = served
    written = ['{"a": "one\\ntwo"}', '{"a": "one\ntwo"}']
    if style != "mistral_named":  # whose arguments are always an object
        written.append(json.dumps(written[0]))
    for each in written:
        message, _ = answers(web, call(style, "add", each))
        ((name, arguments),) = message.calls
        assert (name, json.loads(arguments)) == ("add", {"a": "one\ntwo"})
        assert (message.content, message.finish_reason) == ("", "tool_calls")


@pytest.mark.parametrize("written", ['"w001w"', '[1, "w001w"]', "17", '"{w001w"'])
def test_arguments_that_are_no_object_make_no_call(served: tuple[ToolStyle, Web], written: str) -> None:
    style, web = served
    message, _ = answers(web, call(style, "add", written))
    assert (message.calls, message.finish_reason) == ([], "stop")
    assert written in message.content


def test_the_text_after_a_call_and_unknown_functions_are_passed_on(served: tuple[ToolStyle, Web]) -> None:
    style, web = served
    message, _ = answers(web, call(style, "add", "{}") + "\nThat is w001w.")
    assert message.calls == [["add", "{}"]]
    assert message.content == "That is w001w."
    unknown, _ = answers(web, call(style, "w002w", "{}"))
    # Without a mark, JSON that names no tool is an answer in JSON.
    assert unknown.calls == ([] if style in ("llama3_json", "json") else [["w002w", "{}"]])
    assert unknown.words == ["w002w"]


pieces = st.one_of(
    st.sampled_from(
        [*MARKS, "{", "}", "[", "]", ",", ";", ":", '"', "\\", "\n", " ", "é", "🙂", "null", "1"]
    ),
    st.sampled_from(
        ['{"name": "add", "arguments": {"a": "WORD"}}', '"name": "add"', '"arguments": {', "WORD", "WORD"]
    ),
    st.sampled_from(
        ['"parameters": "WORD"', '{"name": "\\ud800", "arguments": {}}', "{'a': 'WORD'}", '"\\ud83d']
    ),
)
values = st.recursive(
    st.sampled_from(["WORD", None, True, 1.5, "\n", '"', "\ud83d", "}", "</tool_call>"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "WORD"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(data=st.data())
@settings(max_examples=40)
def test_a_stream_is_the_whole_and_no_word_is_lost(
    served: tuple[ToolStyle, Web], data: st.DataObject
) -> None:
    style, web = served
    calls = st.builds(
        lambda name, arguments: call(style, name, arguments),
        st.sampled_from(["add", "find", "WORD"]),
        st.dictionaries(st.sampled_from(["a", "b c"]), values, max_size=2).map(json.dumps),
    )
    drawn = "".join(data.draw(st.lists(pieces | calls, min_size=1, max_size=12)))
    numbers = iter(range(1000))
    text = re.sub("WORD", lambda _: f"w{next(numbers):03}w", drawn)
    message, _ = answers(web, text)
    assert message.words == sorted(WORD.findall(text))
    for _, arguments in message.calls:
        try:
            json.loads(arguments)
        except ValueError:
            # It is as it was written, or its end is missing.
            assert arguments.replace("\\n", "\n") in text.replace("\\n", "\n")
