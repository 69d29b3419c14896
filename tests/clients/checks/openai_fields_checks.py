"""What clients of the `openai` package send, too: fields that change nothing, and mistakes whose errors must help."""
# /// script
# dependencies = ["openai==3.51.0"]
# ///

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import openai
from openai import OpenAI
from service import API, KEY, MODEL, URL, run_checks

client = OpenAI(base_url=API, api_key=KEY, max_retries=0, timeout=120)
USER = {"role": "user", "content": "What can you do?"}
IGNORED = "x-bros-ignored"


def _ask(**fields: Any) -> Any:
    given: dict[str, Any] = {"model": MODEL, "messages": [USER], "max_tokens": 4, **fields}
    return client.chat.completions.with_raw_response.create(**given)


def _posted(body: bytes, kind: str) -> Any:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": kind}
    request = urllib.request.Request(f"{API}/chat/completions", body, headers)
    return urllib.request.urlopen(request, timeout=120)


def _rejected(call: Callable[[], Any]) -> openai.APIStatusError:
    try:
        call()
    except openai.APIStatusError as error:
        return error
    raise AssertionError("the request was accepted")


def check_without_limits_an_answer_ends_by_itself() -> None:
    # The server of the checks has a limit, which models need that go on for ever.
    answer = client.chat.completions.create(model=MODEL, messages=[USER])  # type: ignore[list-item]
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 16 or answer.choices[0].finish_reason == "stop"
    short = client.completions.create(model=MODEL, prompt="one two", extra_body={"ignore_eos": True})
    assert short.usage is not None and short.usage.completion_tokens == 300


def check_sampling_defaults_are_shown() -> None:
    extra = client.models.retrieve(MODEL).model_extra
    assert extra is not None and {"temperature", "top_p"} <= extra["sampling_defaults"].keys()


def check_a_batch_for_another_model_is_refused_at_once() -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    data = json.dumps({**line, "body": {"model": "gpt-4o-mini", "messages": [USER]}}).encode()
    file = client.files.create(file=("lines.jsonl", data), purpose="batch")
    error = _rejected(
        lambda: client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    )
    assert "gpt-4o-mini" in error.message and MODEL in error.message and "--model-alias" in error.message


def check_usage_in_every_chunk() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": MODEL, "messages": [USER], "max_tokens": 4, "stream": True, "stream_options": options}
    with _posted(json.dumps(body).encode(), "application/json") as answer:
        lines = [line.removeprefix("data: ") for line in answer.read().decode().splitlines()]
    lines = [line for line in lines if line.startswith("{")]
    assert len(lines) > 2 and all(json.loads(line)["usage"]["prompt_tokens"] > 0 for line in lines)


def check_fields_that_change_nothing_are_named() -> None:
    body = {
        "skip_special_tokens": True,
        "add_generation_prompt": True,
        "echo": False,
        "prompt_logprobs": None,
    }
    named = _ask(extra_body={**body, "invented": 1}, user="me").headers[IGNORED]
    assert set(named.split(", ")) >= {"invented", "user"} and "echo" not in named, named


def check_messages_come_back_as_they_were_sent() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}, "index": 0}
    answer = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call],
        "id": "msg_1",
        "reasoning": "Hm.",
        "provider_specific_fields": None,
        "refusal": None,
    }
    result = {"role": "tool", "tool_call_id": "call_1", "content": "12 C", "name": "f"}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    assert _ask(messages=[USER, answer, result, USER], tools=[tool]).status_code == 200


def check_reasoning_effort_and_verbosity() -> None:
    for effort in ("none", "minimal", "high"):
        assert _ask(reasoning_effort=effort, verbosity="low").status_code == 200


def check_a_prompt_that_is_too_long_is_named() -> None:
    long = {"role": "user", "content": "word " * 100_000}
    error = _rejected(lambda: _ask(messages=[long]))
    assert error.code == "context_length_exceeded"
    assert isinstance(error.body, dict)
    assert str(error.body["message"]).startswith("This model's maximum context length is "), error.body


def check_a_base_url_without_v1_is_explained() -> None:
    with OpenAI(base_url=URL, api_key=KEY, max_retries=0) as other:
        error = _rejected(lambda: other.chat.completions.create(model=MODEL, messages=[USER]))  # type: ignore[list-item]
    assert isinstance(error, openai.NotFoundError) and f"{URL}/v1" in error.message


def check_a_token_that_does_not_exist_is_the_fault_of_the_request() -> None:
    error = _rejected(lambda: _ask(logit_bias={"99999999": 1}))
    assert isinstance(error, openai.BadRequestError) and error.param == "logit_bias"


def check_values_that_mean_none() -> None:
    for fields in ({"max_tokens": -1}, {"top_p": 0}, {"stop": ""}, {"stop": [""]}):
        assert _ask(**fields).status_code == 200, fields
    assert _ask(stop=[f"never {number}" for number in range(17)]).status_code == 200


def check_a_body_that_says_it_is_a_form_is_none() -> None:
    try:
        _posted(b'{"model": "x"}', "application/x-www-form-urlencoded")
    except urllib.error.HTTPError as error:
        assert error.code == 415, error
    else:
        raise AssertionError("the request was accepted")


if __name__ == "__main__":
    run_checks(globals())
