"""Tools, reasoning and structured output in the Responses API, with the unmodified `openai` client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel

from bros_batch.openai_api.chat_request import parse_chat
from bros_batch.openai_api.responses.input_items import normalized_items
from bros_batch.openai_api.responses.response_request import parse_response_body, response_request
from bros_batch.text.tokenizer import load_tokenizer
from engine.__main__ import make_runner
from engine.config import EngineConfig
from tests.bros_batch.web.serving import MODEL_NAME, serving, web_settings
from tests.engines import running_engine
from tests.factories_tools import make_tool_model
from tests.typing_runner import TypingRunner

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "name": "weather", "description": "Tells it.", "parameters": PARAMETERS}
CHAT_TOOL: Any = {
    "type": "function",
    "function": {name: TOOL[name] for name in ("name", "description", "parameters")},
}
CALLS = "".join(
    f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
    for city in ("Rome", "Oslo")
)
ANSWER = f"<think>Two cities.</think>Let me look. {CALLS}"
KINDS = ["reasoning", "message", "function_call", "function_call"]


class Invoice(BaseModel):
    vendor: str
    total: float


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tool_model(tmp_path_factory.mktemp("tools"), "hermes", reasoning="model_opens")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[tuple[OpenAI, TypingRunner]]:
    directory = tmp_path_factory.mktemp("typing")
    names: Any = {"model": str(model), "served_model_name": MODEL_NAME}
    info = make_runner(EngineConfig(listen="unused", runner="simulated", **names)).info
    runner = TypingRunner(info, load_tokenizer(str(model)))
    with (
        running_engine(directory, runner, **names) as engine,
        serving(web_settings(directory / "web", model, engine_url=engine.url)) as web,
        web.openai() as client,
    ):
        yield client, runner


@pytest.fixture
def client(service: tuple[OpenAI, TypingRunner]) -> OpenAI:
    service[1].write(ANSWER)
    return service[0]


def test_an_answer_with_reasoning_text_and_calls_has_an_item_for_each(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL_NAME, input="Weather?", tools=[TOOL])
    assert [item.type for item in response.output] == KINDS
    assert response.status == "completed"
    reasoning, message, first, second = response.output
    assert reasoning.type == "reasoning" and reasoning.content is not None
    assert reasoning.content[0].text == "Two cities."
    assert message.type == "message" and response.output_text.strip() == "Let me look."
    assert first.type == "function_call" and second.type == "function_call"
    assert [json.loads(call.arguments) for call in (first, second)] == [{"city": "Rome"}, {"city": "Oslo"}]
    assert (first.name, first.status) == ("weather", "completed")
    assert first.call_id != second.call_id
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    assert response.tools[0].to_dict() == {**TOOL, "strict": None}


def test_the_events_of_reasoning_and_calls_add_up_to_the_response(client: OpenAI) -> None:
    events = list(client.responses.create(model=MODEL_NAME, input="Weather?", tools=[TOOL], stream=True))
    last = events[-1]
    assert last.type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    added = [event for event in events if event.type == "response.output_item.added"]
    done = [event for event in events if event.type == "response.output_item.done"]
    assert [event.item.type for event in added] == KINDS
    assert [event.item for event in done] == last.response.output
    assert [event.item.id for event in added] == [event.item.id for event in done]
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert thought == "Two cities."
    for event in done:
        if event.item.type == "function_call":
            pieces = [
                each.delta
                for each in events
                if each.type == "response.function_call_arguments.delta" and each.item_id == event.item.id
            ]
            assert "".join(pieces) == event.item.arguments
    replayed = list(client.responses.retrieve(last.response.id, stream=True))
    assert replayed[-1] == last.model_copy(update={"sequence_number": replayed[-1].sequence_number})
    assert [
        each.item for each in replayed if each.type == "response.output_item.done"
    ] == last.response.output


def test_the_helper_of_the_client_parses_calls(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL_NAME, input="Weather?", tools=[TOOL]) as stream:
        kinds = {event.type for event in stream}
        response = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    assert [item.type for item in response.output] == KINDS


@pytest.mark.parametrize("continued", ["by id", "by items"])
def test_a_tool_loop_gives_the_model_the_chat_that_chat_completions_give_it(
    client: OpenAI, continued: str
) -> None:
    first = client.responses.create(model=MODEL_NAME, input="Weather?", tools=[TOOL])
    calls = [item for item in first.output if item.type == "function_call"]
    outputs: list[Any] = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"} for call in calls
    ]
    if continued == "by id":
        second = client.responses.create(
            model=MODEL_NAME, input=outputs, previous_response_id=first.id, tools=[TOOL]
        )
    else:
        history: list[Any] = [
            {"role": "user", "content": "Weather?"},
            *(item.to_dict() for item in first.output),
        ]
        second = client.responses.create(model=MODEL_NAME, input=[*history, *outputs], tools=[TOOL])
    answer = client.chat.completions.create(
        model=MODEL_NAME, messages=[{"role": "user", "content": "Weather?"}], tools=[CHAT_TOOL]
    )
    chat: list[Any] = [{"role": "user", "content": "Weather?"}, answer.choices[0].message.to_dict()]
    chat += [
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny"}
        for call in answer.choices[0].message.tool_calls or ()
    ]
    again = client.chat.completions.create(model=MODEL_NAME, messages=chat, tools=[CHAT_TOOL])
    assert second.usage is not None and again.usage is not None
    assert second.usage.input_tokens == again.usage.prompt_tokens


def test_a_schema_is_parsed_by_the_client(service: tuple[OpenAI, TypingRunner]) -> None:
    client, runner = service
    runner.write('{"vendor": "ACME", "total": 12.5}')
    response = client.responses.parse(model=MODEL_NAME, input="Extract.", text_format=Invoice)
    assert response.output_parsed == Invoice(vendor="ACME", total=12.5)
    assert response.text is not None and response.text.format is not None
    assert response.text.format.type == "json_schema"
    with client.responses.stream(model=MODEL_NAME, input="Extract.", text_format=Invoice) as stream:
        stream.until_done()
        assert stream.get_final_response().output_parsed == response.output_parsed


FORMATS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "text"}, {"type": "text"}),
    ({"type": "json_object"}, {"type": "json_object"}),
    (
        {"type": "json_schema", "name": "c", "strict": True, "schema": PARAMETERS},
        {"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": PARAMETERS}},
    ),
]


@pytest.mark.parametrize(("written", "as_chat"), FORMATS, ids=lambda each: each["type"])
def test_a_format_asks_for_the_grammar_of_the_chat(written: dict[str, Any], as_chat: dict[str, Any]) -> None:
    body = parse_response_body(json.dumps({"model": "m", "input": "x", "text": {"format": written}}))
    request = response_request(body, normalized_items("x", "s"))
    messages = [{"role": "user", "content": "x"}]
    chat = parse_chat(json.dumps({"model": "m", "messages": messages, "response_format": as_chat}))
    assert request.shape == chat.shape
    assert (request.shape is None) == (written["type"] == "text")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "name": "nothing"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "x"}]}},
         "tool_choice.tools[0]"),
        ({"tools": [{**TOOL, "name": ""}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "parameters": 3}]}, "tools[0].parameters"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 3}}}}, "text.format.schema"),
    ],
)  # fmt: skip
def test_errors_of_tools_and_schemas_name_the_fields_of_this_api(
    client: OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model=MODEL_NAME, input="x", **{"tools": [TOOL], **fields})
    assert (caught.value.param or "").startswith(param), caught.value.message
    assert "response_format" not in caught.value.message


def test_allowed_tools_leave_the_others_out(client: OpenAI) -> None:
    other = {**TOOL, "name": "news"}
    allowed: Any = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "weather"}],
    }
    some = client.responses.create(model=MODEL_NAME, input="x", tools=[TOOL, other], tool_choice=allowed)
    one = client.responses.create(model=MODEL_NAME, input="x", tools=[TOOL])
    assert some.usage is not None and one.usage is not None
    assert some.usage.input_tokens == one.usage.input_tokens
