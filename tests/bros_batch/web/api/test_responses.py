"""The Responses API with the unmodified `openai` client: answers, events, stored responses, and errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseOutputMessage

from bros_batch.db import responses
from bros_batch.db.connections import open_database, writing
from bros_batch.web import response_state
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.engines import RunningEngine
from tests.full_disk import file_size_limit

ANSWER: dict[str, Any] = {"model": MODEL_NAME, "max_output_tokens": 24, "extra_body": {"ignore_eos": True}}


def chat_text(client: OpenAI, messages: list[Any], max_tokens: int = 24) -> str:
    answer = client.chat.completions.create(
        model=MODEL_NAME, messages=messages, max_tokens=max_tokens, extra_body={"ignore_eos": True}
    )
    return answer.choices[0].message.content or ""


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def rejected(call: Callable[[], object]) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        call()
    return caught.value


def test_a_response_has_the_text_of_the_chat_that_it_stands_for(client: OpenAI) -> None:
    response = client.responses.create(**ANSWER, input="Hello", instructions="Be brief.", user="u")
    messages = [{"role": "system", "content": "Be brief."}, user("Hello")]
    assert response.output_text == chat_text(client, messages)
    assert (response.status, response.object, response.model) == ("incomplete", "response", MODEL_NAME)
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    (message,) = response.output
    assert isinstance(message, ResponseOutputMessage)
    assert (message.status, message.role) == ("incomplete", "assistant")
    assert response.usage is not None
    assert (response.usage.output_tokens, response.usage.output_tokens_details.reasoning_tokens) == (24, 0)
    assert response.usage.total_tokens == response.usage.input_tokens + 24
    assert (response.instructions, response.max_output_tokens, response.user) == ("Be brief.", 24, "u")
    assert Response.model_validate(response.to_dict(), strict=False)  # no field is missing or of another type


def test_items_become_the_messages_of_the_chat(client: OpenAI) -> None:
    items: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "One"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Two", "annotations": []}],
        },
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Thr"}, {"type": "input_text", "text": "ee"}],
        },
    ]
    messages = [{"role": "system", "content": "Be brief."}, user("One")]
    messages += [{"role": "assistant", "content": "Two"}, user("Three")]
    assert client.responses.create(**ANSWER, input=items).output_text == chat_text(client, messages)


def test_instructions_are_joined_with_the_system_messages_at_the_start(client: OpenAI) -> None:
    items: list[Any] = [
        {"role": "system", "content": "One."},
        {"role": "developer", "content": "Two."},
        user("Hello"),
    ]
    messages = [{"role": "system", "content": "Zero.\n\nOne.\n\nTwo."}, user("Hello")]
    response = client.responses.create(**ANSWER, input=items, instructions="Zero.")
    assert response.output_text == chat_text(client, messages)


def test_a_stream_has_all_events_in_order_and_the_same_text(client: OpenAI) -> None:
    events = list(client.responses.create(**ANSWER, input="Hello", stream=True))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == "".join(deltas) == chat_text(client, [user("Hello")])
    assert client.responses.retrieve(last.response.id) == last.response


def test_the_helper_of_the_client_accumulates_the_stream(client: OpenAI) -> None:
    stop = chat_text(client, [user("Hello")])[8:12]
    asked: dict[str, Any] = {"model": MODEL_NAME, "input": "Hello", "max_output_tokens": 24}
    with client.responses.stream(**asked, extra_body={"ignore_eos": True, "stop": stop}) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert response.status == "completed"
    assert response.output_text == snapshots[-1] == chat_text(client, [user("Hello")]).partition(stop)[0]


def test_a_stream_names_its_events_and_just_ends(web: Web) -> None:
    body = {"model": MODEL_NAME, "input": "Hello", "max_output_tokens": 4, "stream": True}
    with web.http() as http:
        text = http.post("/v1/responses", json=body).text
    blocks = text.strip().split("\n\n")
    assert blocks[0].startswith('event: response.created\ndata: {"type":"response.created"')
    assert blocks[-1].startswith(("event: response.incomplete\n", "event: response.completed\n"))


def test_a_conversation_continues_from_a_stored_response(client: OpenAI) -> None:
    first = client.responses.create(**ANSWER, input="One", instructions="Be brief.")
    second = client.responses.create(**ANSWER, input="Two", previous_response_id=first.id)
    third = client.responses.create(**ANSWER, input=[user("Three")], previous_response_id=second.id)  # type: ignore[list-item]
    messages = [user("One"), {"role": "assistant", "content": first.output_text}, user("Two")]
    assert second.output_text == chat_text(client, messages), "instructions are not carried over"
    messages += [{"role": "assistant", "content": second.output_text}, user("Three")]
    assert third.output_text == chat_text(client, messages)
    listed = list(client.responses.input_items.list(third.id, order="asc", limit=2))
    assert [item.content[0].text for item in listed] == [  # type: ignore[union-attr]
        "One",
        first.output_text,
        "Two",
        second.output_text,
        "Three",
    ]
    newest = client.responses.input_items.list(third.id, limit=1)
    assert (newest.data[0].content[0].text, newest.has_more) == ("Three", True)  # type: ignore[union-attr]


def test_a_stored_response_can_be_read_replayed_and_deleted(client: OpenAI) -> None:
    response = client.responses.create(**ANSWER, input="Hello", metadata={"a": "b"})
    assert client.responses.retrieve(response.id) == response
    events = list(client.responses.retrieve(response.id, stream=True))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response == response
    rest = list(client.responses.retrieve(response.id, stream=True, starting_after=events[2].sequence_number))
    assert rest == events[3:]
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError, match=response.id):
        client.responses.retrieve(response.id)
    error = rejected(
        lambda: client.responses.create(**ANSWER, input="More", previous_response_id=response.id)
    )
    assert (error.param, error.code) == ("previous_response_id", "previous_response_not_found")


def test_a_deleted_response_ends_the_conversations_that_go_through_it(client: OpenAI) -> None:
    first = client.responses.create(**ANSWER, input="One")
    second = client.responses.create(**ANSWER, input="Two", previous_response_id=first.id)
    client.responses.delete(first.id)
    assert client.responses.retrieve(second.id).output_text == second.output_text
    error = rejected(lambda: client.responses.create(**ANSWER, input="Three", previous_response_id=second.id))
    assert "deleted or has expired" in error.message
    assert error.param == "previous_response_id"


def test_store_false_keeps_nothing(client: OpenAI, web: Web) -> None:
    response = client.responses.create(**ANSWER, input="A secret of mine", store=False)
    assert response.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    stored = (
        sqlite3.connect(web.settings.data_dir / "bros.db")
        .execute("SELECT input, body FROM responses")
        .fetchall()
    )
    assert not [row for row in stored if "A secret of mine" in str(row)]


def test_a_conversation_is_bounded(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_state, "MAX_ANCESTORS", 1)
    first = client.responses.create(**ANSWER, input="One")
    second = client.responses.create(**ANSWER, input="Two", previous_response_id=first.id)
    error = rejected(lambda: client.responses.create(**ANSWER, input="3", previous_response_id=second.id))
    assert "has 1 responses, which is the most" in error.message
    monkeypatch.setattr(response_state, "MAX_ANCESTORS", 1000)
    monkeypatch.setattr(response_state, "MAX_CONVERSATION_BYTES", 2000)
    error = rejected(lambda: client.responses.create(**ANSWER, input="3", previous_response_id=second.id))
    assert "Start a new one" in error.message


@pytest.mark.parametrize(
    ("field", "param", "says"),
    [
        ({}, "input", "Missing required parameter: 'input'."),
        ({"input": 3}, "input", "a string or a list of objects"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", "Supported types are message, reasoning"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "Send the item itself"),
        ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role", "must be one of user"),
        ({"input": [{"role": "user"}]}, "input[0].content", "a string or a list of text parts"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "input_image"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output", "a string or a list"),
        ({"input": "x", "temperature": 7}, "temperature", "less than or equal to 2"),
        ({"input": "x", "max_tokens": 7}, "max_tokens", "has 'max_output_tokens' instead"),
        ({"input": "x", "messages": [{"role": "user"}]}, "messages", "has 'input' instead"),
        ({"input": "x", "n": 2}, "n", "Unknown parameter"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"input": "x", "max_output_tokens": 99999}, "input", "maximum context length"),
        ({"input": "x" * 9999}, "input", "maximum context length"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type", "'json_schema'"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", "runs no tools itself"),
        ({"input": "x", "tools": [3]}, "tools[0]", "must be an object"),
        ({"input": "x", "tool_choice": {"type": "mcp"}}, "tool_choice", "'allowed_tools'"),
        ({"input": "x", "background": True, "store": False}, "background", "leave out 'store: false'"),
        ({"input": "x", "conversation": "conv_1"}, "conversation", "not supported"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt", "not supported"),
        ({"input": "x", "metadata": {"a": 1}}, "metadata.a", "valid string"),
        ({"input": "x", "previous_response_id": "resp_0"}, "previous_response_id", "no response 'resp_0'"),
        ({"input": "x", "model": 3}, "model", "valid string"),
    ],
)  # fmt: skip
def test_an_error_names_the_field_of_this_api(web: Web, field: dict[str, Any], param: str, says: str) -> None:
    with web.http() as http:
        answer = http.post("/v1/responses", json={"model": MODEL_NAME, **field})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_a_conversation_that_is_too_long_may_lose_its_beginning(client: OpenAI) -> None:
    turns: list[Any] = [{"role": "developer", "content": "Be brief."}]
    for number in range(30):
        turns += [user(f"Question {number}: " + "why " * 60), {"role": "assistant", "content": "Because."}]
    turns.append(user("And now?"))
    error = rejected(lambda: client.responses.create(**ANSWER, input=turns))
    assert error.code == "context_length_exceeded"
    answer = client.responses.create(**ANSWER, input=turns, truncation="auto")
    assert answer.truncation == "auto"
    fitting = [
        len(turns[start:])
        for start in range(1, len(turns), 2)
        if chat_fits(client, [{"role": "system", "content": "Be brief."}, *turns[start:]])
    ]
    kept = [{"role": "system", "content": "Be brief."}, *turns[-max(fitting) :]]
    assert answer.output_text == chat_text(client, kept)
    error = rejected(lambda: client.responses.create(**ANSWER, input=[user("x" * 9999)], truncation="auto"))  # type: ignore[list-item]
    assert error.code == "context_length_exceeded"


def chat_fits(client: OpenAI, messages: list[Any]) -> bool:
    try:
        chat_text(client, messages)
    except openai.BadRequestError:
        return False
    return True


def test_another_model_is_not_found(client: OpenAI) -> None:
    for background in (False, True):
        with pytest.raises(openai.NotFoundError, match="gpt-9"):
            client.responses.create(model="gpt-9", input="Hello", background=background)


def test_fields_without_effect_are_named(client: OpenAI) -> None:
    answer = client.responses.with_raw_response.create(
        model=MODEL_NAME,
        input="x",
        max_output_tokens=1,
        max_tool_calls=3,
        reasoning={"summary": "auto"},
        text={"verbosity": "low"},
        extra_body={"invented": 1},
    )
    assert answer.headers["x-bros-ignored"] == "invented, max_tool_calls, reasoning.summary, verbosity"


def test_strict_rejects_unknown_fields(tmp_path: Path, text_model: Path, engine: RunningEngine) -> None:
    settings = web_settings(tmp_path, text_model, engine_url=engine.url, strict=True)
    with serving(settings) as web, web.openai() as client:
        error = rejected(
            lambda: client.responses.create(model=MODEL_NAME, input="x", extra_body={"invented": 1})
        )
        assert error.param == "invented"
        text: Any = {"invented": 1}
        assert (
            rejected(lambda: client.responses.create(model=MODEL_NAME, input="x", text=text)).param
            == "text.invented"
        )


def test_only_a_response_in_the_background_can_be_cancelled(client: OpenAI) -> None:
    response = client.responses.create(**ANSWER, input="Hello")
    error = rejected(lambda: client.responses.cancel(response.id))
    assert error.code == "not_in_background"


def test_a_key_may_have_so_many_unfinished_responses_in_the_background(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bros_batch.db.response_jobs.MAX_UNFINISHED", 1)
    batches = client.batches.list().data
    waiting = client.responses.create(model=MODEL_NAME, input="Hello", background=True)
    assert (waiting.status, waiting.background, waiting.service_tier) == ("queued", True, "flex")
    with pytest.raises(openai.RateLimitError, match="POST /v1/batches"):
        client.responses.create(model=MODEL_NAME, input="Hello", background=True)
    cancelled = client.responses.cancel(waiting.id)
    assert cancelled.status == "cancelled"
    assert client.responses.cancel(waiting.id) == cancelled
    assert client.batches.list().data == batches, "its job is not a batch"


def test_an_answer_comes_even_if_it_cannot_be_stored(
    tmp_path: Path, text_model: Path, engine: RunningEngine
) -> None:
    settings = web_settings(tmp_path, text_model, engine_url=engine.url)
    with serving(settings) as web, web.openai() as client:
        kept = client.responses.create(**ANSWER, input="Hello")
        with file_size_limit(1):
            response = client.responses.create(**ANSWER, input="Hello")
        assert response.output_text == kept.output_text
        assert (kept.to_dict()["store"], response.to_dict()["store"]) == (True, False)


def test_old_responses_go(tmp_path: Path, text_model: Path, engine: RunningEngine) -> None:
    settings = web_settings(tmp_path, text_model, engine_url=engine.url, file_retention_s=100)
    with serving(settings) as web, web.openai() as client:
        old = client.responses.create(**ANSWER, input="One")
        new = client.responses.create(**ANSWER, input="Two", previous_response_id=old.id)
        other = client.responses.create(**ANSWER, input="Three")
        waiting = client.responses.create(model=MODEL_NAME, input="Hello", background=True)
        database = open_database(settings.resolved_database_url)
        with writing(database) as connection:
            removable = responses.removable_responses
            assert removable(connection, new.created_at + 90) == []
            assert set(removable(connection, new.created_at + 110)) == {old.id, new.id, other.id}
            assert removable(connection, 0, most_per_key=4) == []
            assert removable(connection, 0, most_per_key=2) == [old.id, new.id]
            assert responses.delete_responses(connection, [other.id, waiting.id]) == 2
            assert connection.exec_driver_sql("SELECT body, result FROM items").all() == [(None, None)]
        database.dispose()
