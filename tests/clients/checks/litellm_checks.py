"""LiteLLM: completions under its prefixes for compatible servers, tools, fallbacks, files and batches."""
# /// script
# dependencies = ["litellm==1.110.2"]
# ///

from __future__ import annotations

import json
import time
from typing import Any

import litellm
from service import API, INVOICE, KEY, MODEL, URL, run_checks

SERVER: Any = {"api_base": API, "api_key": KEY, "timeout": 120, "num_retries": 0}
QUESTION = [{"role": "user", "content": "What can you do?"}]
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 30} for name in ("vendor", "total")},
    "required": ["vendor", "total"],
    "additionalProperties": False,
}


def check_chat() -> None:
    for prefix in ("openai", "hosted_vllm", "litellm_proxy", "custom_openai"):
        answer = litellm.completion(model=f"{prefix}/{MODEL}", messages=QUESTION, max_tokens=20, **SERVER)
        assert answer.choices[0].message.content, prefix
        pieces = litellm.completion(
            model=f"{prefix}/{MODEL}", messages=QUESTION, max_tokens=20, stream=True, **SERVER
        )
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces), prefix


def check_completions() -> None:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt="Invoice", max_tokens=5, **SERVER
    )
    assert answer.choices[0].text


def check_json_schema() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "invoice", "schema": SCHEMA, "strict": True}}
    messages = [{"role": "user", "content": f"Extract.\n\n{INVOICE}"}]
    for prefix in ("openai", "hosted_vllm"):
        answer = litellm.completion(
            model=f"{prefix}/{MODEL}", messages=messages, response_format=schema, **SERVER
        )
        assert set(json.loads(answer.choices[0].message.content)) == {"vendor", "total"}


def check_tools() -> None:
    tool = {"type": "function", "function": {"name": "save", "description": "Save", "parameters": SCHEMA}}
    for prefix in ("openai", "hosted_vllm"):
        answer = litellm.completion(
            model=f"{prefix}/{MODEL}", messages=QUESTION, tools=[tool], tool_choice="required", **SERVER
        )
        call = answer.choices[0].message.tool_calls[0]
        history = [
            *QUESTION,
            answer.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": "ok"},
        ]
        litellm.completion(model=f"{prefix}/{MODEL}", messages=history, tools=[tool], max_tokens=10, **SERVER)


def check_a_prompt_that_is_too_long_is_recognized() -> None:
    messages = [{"role": "user", "content": "word " * 100_000}]
    try:
        litellm.completion(model=f"openai/{MODEL}", messages=messages, **SERVER)
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("the prompt was accepted")


def check_embeddings() -> None:
    answer = litellm.embedding(model=f"openai/{MODEL}", input=["one", "two"], **SERVER)
    assert len(answer.data) == 2


def check_responses() -> None:
    answer = litellm.responses(model=f"openai/{MODEL}", input="What can you do?", **SERVER)
    assert answer.output


def check_files_and_batches() -> None:
    server: Any = {"custom_llm_provider": "openai", "api_base": API, "api_key": KEY}
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 5}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    data = ("lines.jsonl", (json.dumps(line) + "\n").encode())
    file = litellm.create_file(file=data, purpose="batch", **server)
    batch = litellm.create_batch(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id, **server
    )
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.2)
        batch = litellm.retrieve_batch(batch_id=batch.id, **server)
    assert batch.status == "completed", batch
    content = litellm.file_content(file_id=batch.output_file_id, **server).content
    assert json.loads(content)["custom_id"] == "a"


def check_a_base_url_without_v1_is_explained() -> None:
    try:
        litellm.completion(model=f"openai/{MODEL}", messages=QUESTION, **{**SERVER, "api_base": URL})
    except Exception as error:
        assert f"{URL}/v1" in str(error), error
        return
    raise AssertionError("the request was accepted")


if __name__ == "__main__":
    run_checks(globals())
