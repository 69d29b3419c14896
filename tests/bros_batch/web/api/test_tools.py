"""Tools and reasoning with OpenAI's client, whole and streamed, in each form of calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.bros_batch.web.repeating_engine import repeating_web
from tests.bros_batch.web.serving import MODEL_NAME, Web
from tests.factories_tools import ToolStyle, make_tool_model

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "Look.", "parameters": PARAMETERS},
    }
]
# What the model writes in each form; each output is also the user's message, which the model repeats.
WRITTEN: dict[ToolStyle, str] = {
    "hermes": "Let me see.\n" + "\n".join(
        f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
        for city in ("Zürich", "Oslo")
    ),
    "llama3_json": '{"name": "get_weather", "parameters": {"city": "Zürich"}}; '
    '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
    "mistral": 'Let me see.[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Zürich"}}, '
    '{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
    "mistral_named": 'Let me see.[TOOL_CALLS]get_weather[ARGS]{"city": "Zürich"}'
    '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}',
    "json": '[{"name": "get_weather", "arguments": {"city": "Zürich"}}, '
    '{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
}  # fmt: skip


@pytest.fixture(scope="module", params=get_args(ToolStyle))
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ToolStyle, Web]]:
    directory = tmp_path_factory.mktemp("tools")
    with repeating_web(directory, make_tool_model(directory / "model", request.param)) as web:
        yield request.param, web


def ask(client: OpenAI, text: str, **fields: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL_NAME, messages=[{"role": "user", "content": text}], temperature=0, **fields
    )


def test_a_loop_of_tool_calls(served: tuple[ToolStyle, Web]) -> None:
    style, web = served
    with web.openai() as client:
        messages: list[Any] = [{"role": "user", "content": WRITTEN[style]}]
        first = client.chat.completions.create(model=MODEL_NAME, messages=messages, tools=TOOLS).choices[0]
        assert first.finish_reason == "tool_calls"
        assert first.message.content == (None if style in ("llama3_json", "json") else "Let me see.")
        calls: Any = first.message.tool_calls
        assert [call.function.name for call in calls] == ["get_weather"] * 2
        assert [json.loads(call.function.arguments) for call in calls] == [
            {"city": "Zürich"},
            {"city": "Oslo"},
        ]
        assert len({call.id for call in calls}) == 2
        messages.append(first.message)
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "12 degrees"}]}
            for call in calls
        ]
        second = client.chat.completions.create(model=MODEL_NAME, messages=messages, tools=TOOLS).choices[0]
        assert (second.message.content, second.message.tool_calls) == ("It is 12 degrees.", None)
        assert second.finish_reason == "stop"


def test_a_stream_has_the_same_calls_in_pieces(served: tuple[ToolStyle, Web]) -> None:
    style, web = served
    with web.openai() as client:
        whole = ask(client, WRITTEN[style], tools=TOOLS).choices[0]
        opened: list[Any] = []
        num_pieces = 0
        for chunk in ask(client, WRITTEN[style], tools=TOOLS, stream=True):
            delta = chunk.choices[0].delta
            for call in delta.tool_calls or ():
                if call.function.name:
                    assert call.id and call.type == "function"
                    opened.append(call.index)
                else:
                    assert call.id is None and call.index == opened[-1]
                    num_pieces += 1
        assert opened == [0, 1] and num_pieces > 4
        with client.chat.completions.stream(
            model=MODEL_NAME, messages=[{"role": "user", "content": WRITTEN[style]}], tools=TOOLS
        ) as stream:
            streamed = stream.get_final_completion().choices[0]
        assert streamed.finish_reason == whole.finish_reason
        assert (streamed.message.content or None) == whole.message.content
        pairs = [
            [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
            for message in (streamed.message, whole.message)
        ]
        assert pairs[0] == pairs[1] and len(pairs[0]) == 2


def test_calls_can_be_limited_and_turned_off(served: tuple[ToolStyle, Web]) -> None:
    style, web = served
    with web.openai() as client:
        single = ask(client, WRITTEN[style], tools=TOOLS, parallel_tool_calls=False).choices[0]
        assert len(single.message.tool_calls) == 1
        none = ask(client, WRITTEN[style], tools=TOOLS, tool_choice="none").choices[0]
        assert none.message.tool_calls is None and none.finish_reason == "stop"
        assert "Oslo" in none.message.content
        plain = ask(client, "Hello.", tools=TOOLS).choices[0]
        assert (plain.message.content, plain.finish_reason) == ("Hello.", "stop")


class GetWeather(BaseModel):
    city: str


@pytest.fixture(scope="module")
def reasoning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    directory = tmp_path_factory.mktemp("reasoning")
    model = make_tool_model(directory / "model", "hermes", reasoning="prompt_opens")
    with repeating_web(directory, model) as web:
        yield web


THOUGHT = f"Hm, which?\n</think>\n\n{WRITTEN['hermes']}"


def test_reasoning_has_a_field_of_its_own(reasoning: Web) -> None:
    with reasoning.openai() as client:
        answer = ask(client, THOUGHT, tools=TOOLS)
        message = answer.choices[0].message
        assert message.reasoning_content == message.reasoning == "Hm, which?"
        assert message.content == "Let me see."
        assert len(message.tool_calls) == 2
        counted = answer.usage.completion_tokens_details.reasoning_tokens
        upto = reasoning.tokenizer.encode_prompt("Hm, which?\n</think>", add_special_tokens=False)
        assert counted == len(upto)
        chunks = list(ask(client, THOUGHT, tools=TOOLS, stream=True, stream_options={"include_usage": True}))
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        pieces = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
        assert "".join(pieces) == "Hm, which?" and sum(map(bool, pieces)) > 1
        assert "".join(delta.content or "" for delta in deltas) == "Let me see."
        assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == counted
        hidden = ask(client, THOUGHT, extra_body={"include_reasoning": False})
        assert "reasoning_content" not in hidden.choices[0].message.model_extra
        assert hidden.usage.completion_tokens_details.reasoning_tokens == counted
        cut = ask(client, THOUGHT, max_tokens=3).choices[0]
        assert (cut.message.content, cut.finish_reason) == ("", "length")
        assert "Hm, which?".startswith(cut.message.reasoning_content)


def test_parsed_calls_have_the_type_of_their_model(reasoning: Web) -> None:
    with reasoning.openai() as client:
        answer = client.chat.completions.parse(
            model=MODEL_NAME,
            messages=[{"role": "user", "content": THOUGHT.replace("get_weather", "GetWeather")}],
            tools=[openai.pydantic_function_tool(GetWeather)],
        )
        calls: Any = answer.choices[0].message.tool_calls
        assert [call.function.parsed_arguments for call in calls] == [
            GetWeather(city="Zürich"),
            GetWeather(city="Oslo"),
        ]


def test_a_template_without_tools_is_named(web: Web) -> None:
    with web.openai() as client:
        with pytest.raises(openai.BadRequestError, match="chat template does not support tools") as caught:
            ask(client, "Hello", tools=TOOLS)
        assert caught.value.param == "tools"
        assert "'response_format' with a JSON schema works" in caught.value.message
        tool = {"type": "function", **TOOLS[0]["function"]}
        with pytest.raises(openai.BadRequestError, match="chat template does not support tools"):
            client.responses.create(model=MODEL_NAME, input="Hello", tools=[tool])
        with web.http() as http:
            body = {"messages": [{"role": "user", "content": "Hello"}], "tools": TOOLS}
            assert "does not support tools" in http.post("/tokenize", json=body).json()["error"]["message"]
        ask(client, "Hello", tools=TOOLS, tool_choice="none", max_tokens=1)
