"""The `openai` package: everything that it offers for text models."""
# /// script
# dependencies = ["openai==3.51.0"]
# ///

from __future__ import annotations

import base64
import json
import struct
import time
from typing import Any, Literal

import openai
from openai import OpenAI
from pydantic import BaseModel, Field
from service import API, INVOICE, KEY, MODEL, run_checks

client = OpenAI(base_url=API, api_key=KEY, max_retries=0, timeout=120)
QUESTION: Any = [{"role": "user", "content": "What can you do?"}]
EXTRACT: Any = [
    {"role": "user", "content": f"Extract vendor, date, total and currency as JSON.\n\n{INVOICE}"}
]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


class Invoice(BaseModel):
    vendor: str = Field(max_length=40)
    date: str = Field(max_length=20)
    total: str = Field(max_length=20)
    currency: str = Field(max_length=3)


def ended(batch: Any) -> Any:
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    return batch


def batch_of(endpoint: Any, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run a batch and return the bodies of its responses, in the order of the lines."""
    lines = [
        {"custom_id": str(number), "method": "POST", "url": endpoint, "body": {"model": MODEL, **body}}
        for number, body in enumerate(bodies)
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("lines.jsonl", data), purpose="batch")
    batch = ended(client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h"))
    if batch.error_file_id:
        raise AssertionError(client.files.content(batch.error_file_id).text[:300])
    assert batch.status == "completed", batch.errors
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [result["custom_id"] for result in results] == [line["custom_id"] for line in lines]
    return [result["response"]["body"] for result in results]


def check_models() -> None:
    assert client.models.retrieve(MODEL).id == MODEL
    assert MODEL in [model.id for model in client.models.list()]


def check_chat() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=30, user="me", store=True
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None and answer.usage.completion_tokens > 0
    several = client.chat.completions.create(model=MODEL, messages=QUESTION, n=3, max_completion_tokens=5)
    assert [choice.index for choice in several.choices] == [0, 1, 2]


def check_chat_streamed() -> None:
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, max_tokens=30, stream=True, stream_options=options
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=30)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage or chunks[-1].usage is not None
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0) as stream:
        for _ in stream:
            pass
        assert (stream.get_final_completion().choices[0].message.content or "").startswith(text or "")


def check_logprobs() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=3, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [len(each.top_logprobs) for each in logprobs.content] == [2, 2, 2]


def check_completions() -> None:
    answer = client.completions.create(model=MODEL, prompt=["one", "two"], max_tokens=4, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    pieces = list(client.completions.create(model=MODEL, prompt="one", max_tokens=4, stream=True))
    assert pieces[-1].choices[0].finish_reason


def check_completions_echo() -> None:
    answer = client.completions.create(model=MODEL, prompt="one two", max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == "one two"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None and logprobs.token_logprobs[-1] < 0


def check_parse() -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=EXTRACT, response_format=Invoice)
    assert isinstance(answer.choices[0].message.parsed, Invoice)
    with client.chat.completions.stream(model=MODEL, messages=EXTRACT, response_format=Invoice) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Invoice)


def check_json_object() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=EXTRACT, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def check_tools() -> None:
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, tools=[WEATHER], tool_choice=choice, max_tokens=200
        )
        calls: Any = answer.choices[0].message.tool_calls
        assert calls and calls[0].function.name == "get_weather", answer
        assert set(json.loads(calls[0].function.arguments)) == {"city", "unit"}
        history = [
            *QUESTION,
            answer.choices[0].message,
            {"role": "tool", "tool_call_id": calls[0].id, "content": "12 C"},
        ]
        last = client.chat.completions.create(model=MODEL, messages=history, tools=[WEATHER], max_tokens=20)
        assert last.choices[0].finish_reason in ("stop", "length", "tool_calls")
    for choice in ("auto", "none"):
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, tools=[WEATHER], tool_choice=choice, max_tokens=20
        )


def check_tools_streamed() -> None:
    class GetWeather(BaseModel):
        city: Literal["Paris", "Rome"]
        unit: Literal["C", "F"]

    tool: Any = openai.pydantic_function_tool(GetWeather)
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, tools=[tool], tool_choice="required", max_tokens=200
    ) as stream:
        kinds = {event.type for event in stream}
        calls: Any = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.delta" in kinds
    assert isinstance(calls[0].function.parsed_arguments, GetWeather)


def check_embeddings() -> None:
    answer = client.embeddings.create(model=MODEL, input=["one", "two", "one"])  # the client asks for base64
    first, second, third = (each.embedding for each in answer.data)
    assert first == third != second
    raw: Any = client.embeddings.with_raw_response.create(model=MODEL, input="one", encoding_format="base64")
    encoded = json.loads(raw.text if isinstance(raw.text, str) else raw.text())["data"][0]["embedding"]
    assert struct.unpack("<f", base64.b64decode(encoded)[:4])[0] == first[0]
    whole = client.embeddings.create(model=MODEL, input="one", encoding_format="float").data[0].embedding
    assert len(whole) == len(first)
    short = client.embeddings.create(model=MODEL, input="one", dimensions=8).data[0].embedding
    assert len(short) == 8


def check_responses() -> None:
    first = client.responses.create(model=MODEL, input="What can you do?", instructions="Be brief.")
    assert first.status == "completed" and first.output_text
    second = client.responses.create(model=MODEL, input="And what else?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(first.id)
    try:
        client.responses.retrieve(first.id)
    except openai.NotFoundError:
        return
    raise AssertionError("a deleted response is still there")


def check_responses_streamed() -> None:
    events = list(client.responses.create(model=MODEL, input="What can you do?", stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text  # type: ignore[union-attr]


def check_responses_parse() -> None:
    answer = client.responses.parse(model=MODEL, input=EXTRACT, text_format=Invoice)
    assert isinstance(answer.output_parsed, Invoice)


def check_responses_tools() -> None:
    tool: Any = {"type": "function", "strict": True, **WEATHER["function"]}
    answer = client.responses.create(model=MODEL, input="Hello", tools=[tool], tool_choice="required")
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert set(json.loads(call.arguments)) == {"city", "unit"}
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "12 C"}
    client.responses.create(
        model=MODEL, input=[output], previous_response_id=answer.id, tools=[tool], max_output_tokens=20
    )


def check_responses_background() -> None:
    response = client.responses.create(model=MODEL, input="What can you do?", background=True)
    while response.status in ("queued", "in_progress"):
        time.sleep(0.2)
        response = client.responses.retrieve(response.id)
    assert response.status == "completed" and response.output_text
    other = client.responses.create(model=MODEL, input="What can you do?", background=True)
    assert client.responses.cancel(other.id).status in ("cancelled", "completed")


def check_batches() -> None:
    for body in batch_of("/v1/chat/completions", [{"messages": QUESTION, "max_tokens": 5}] * 3):
        assert body["choices"][0]["message"]["content"]
    for body in batch_of("/v1/completions", [{"prompt": "one", "max_tokens": 5}] * 3):
        assert body["choices"][0]["text"]
    assert client.batches.list(limit=1).data


def check_batches_of_schemas() -> None:
    schema = {"name": "invoice", "schema": Invoice.model_json_schema()}
    body = {"messages": EXTRACT, "response_format": {"type": "json_schema", "json_schema": schema}}
    for found in batch_of("/v1/chat/completions", [body] * 2):
        Invoice.model_validate_json(found["choices"][0]["message"]["content"])


def check_batches_of_embeddings() -> None:
    for body in batch_of("/v1/embeddings", [{"input": "one"}] * 2):
        assert len(body["data"][0]["embedding"]) > 1


def check_batches_of_responses() -> None:
    for body in batch_of("/v1/responses", [{"input": "What can you do?"}] * 2):
        assert body["status"] == "completed"


def check_errors() -> None:
    for fields, kind in (
        ({"model": "other"}, openai.NotFoundError),
        ({"temperature": -1}, openai.BadRequestError),
        ({"max_tokens": 10**8}, openai.BadRequestError),
    ):
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, **fields})
        except kind as error:
            assert error.body is not None and error.code, error
        else:
            raise AssertionError(f"{fields} was accepted")


def check_a_burst_waits_for_its_turn() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(_: int) -> str | None:
        answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(64) as pool:
        assert len(list(pool.map(ask, range(64)))) == 64


if __name__ == "__main__":
    run_checks(globals())
