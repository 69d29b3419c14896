"""Request bodies: accepted fields, and errors that name the field at fault."""

from __future__ import annotations

import pytest

from bros_batch.openai_api.message import template_messages
from bros_batch.openai_api.registry import parse_body
from bros_batch.openai_api.sampling import sampling_of
from bros_batch.openai_api.sampling_defaults import SamplingDefaults
from bros_batch.request_error import RequestError
from tests.bros_batch.openai_api.factories import CHAT, chat, completion

TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "other"}}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"slo": {"ttft_ms": 1, "tpot_ms": 1, "foo": 1}}, "slo.foo", "Unknown parameter"),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": True}, "n", "valid integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_completion_tokens": -2}, "max_completion_tokens", "greater than or equal to 1"),
        ({"stop": ["x" * 1001]}, "stop", "at most 1000 characters"),
        ({"stop": list(map(str, range(65)))}, "stop", "at most 64"),
        ({"stop": [1]}, "stop", "list of strings"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "must be one of text, json_object"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "Missing"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'function'"),
        (
            {"tools": [{"type": "function", "function": {"name": ""}}]},
            "tools[0].function.name",
            "1 character",
        ),
        ({"tool_choice": "required"}, "tool_choice", "no 'tools'"),
        ({"tools": [TOOL], "tool_choice": NAMED}, "tool_choice", "'other'"),
        ({"tools": [TOOL], "tool_choice": "never"}, "tool_choice", "must be 'none'"),
        ({"functions": [{"name": "f"}]}, "functions", "older form"),
        ({"function_call": {"name": "f"}}, "function_call", "older form"),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]},
            "messages[0].function_call",
            "older",
        ),
        ({"audio": {"voice": "x"}}, "audio", "not supported yet"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "not a token id"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "-100 to 100"),
        ({"top_logprobs": 5}, "top_logprobs", "'logprobs' to be true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"slo": {"ttft_ms": 100}}, "slo.tpot_ms", "Missing"),
        ({"slo": {}}, "slo.ttft_ms", "Missing"),
        ({"slo": {"slowdown": 0}}, "slo.slowdown", "greater than or equal to 0.001"),
        ({"slo": {"slowdown": 101}}, "slo.slowdown", "less than or equal to 100"),
        ({"slo": {"slowdown": "5%"}}, "slo.slowdown", "valid number"),
        ({"slo": {"slowdown": 0.1, "ttft_ms": 100}}, "slo.slowdown", "either 'slowdown', or 'ttft_ms'"),
        ({"slo": {"ttft_ms": 0, "tpot_ms": 1}}, "slo.ttft_ms", "greater than 0"),
        ({"service_tier": "gold"}, "service_tier", "'flex'"),
        ({"seed": 0.5}, "seed", "valid integer"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "greater than the maximum"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "'stream' set to true"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be given"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "not null"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "'image_url' are not supported",
        ),
    ],
)
def test_invalid_fields_are_named(fields: dict[str, object], param: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert said in caught.value.message
    assert param.split(".")[0].split("[")[0] in caught.value.message


@pytest.mark.parametrize(
    "raw", ["", "{", "[]", "null", "5", '"x"', "[" * 5000, b"\xff\xfe", '{"model": "\\ud800"}']
)
def test_rejects_anything_but_a_json_object(raw: str | bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_body(CHAT, raw)
    assert caught.value.param is None
    assert "JSON" in caught.value.message


def test_a_missing_field_is_named() -> None:
    with pytest.raises(RequestError) as caught:
        parse_body(CHAT, '{"model": "m"}')
    assert caught.value.param == "messages"
    with pytest.raises(RequestError) as caught:
        parse_body("/v1/moderations", "{}")
    assert caught.value.param == "endpoint"


def test_fields_without_effect_are_accepted() -> None:
    harmless = {
        "user": "u", "metadata": {"a": "b"}, "store": True, "tools": [], "tool_choice": "none", "audio": None,
        "response_format": {"type": "text"}, "parallel_tool_calls": True, "modalities": ["text"],
        "safety_identifier": "x", "prompt_cache_key": "k",
    }  # fmt: skip
    assert sampling_of(chat(**harmless), SamplingDefaults()) == sampling_of(chat(), SamplingDefaults())


def test_an_earlier_answer_can_be_sent_back() -> None:
    answer = {"role": "assistant", "content": "yes", "refusal": None, "annotations": [], "tool_calls": []}
    request = chat(
        messages=[{"role": "developer", "content": "be brief"}, answer, {"role": "user", "content": "?"}]
    )
    assert template_messages(request.messages) == [
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "?"},
    ]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].content == "ab"


def test_the_last_of_duplicate_keys_counts() -> None:
    raw = '{"model": "m", "n": 7, "n": 2, "messages": [{"role": "user", "content": "hi"}]}'
    assert parse_body(CHAT, raw).num_choices == 2


@pytest.mark.parametrize("prompt", ["x", "", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_forms_of_a_prompt(prompt: object) -> None:
    assert completion(prompt=prompt).prompt == prompt


@pytest.mark.parametrize("prompt", [None, 5, {}, [], [[]], [1, "a"], [-1], [2**31], [True], [[1], ["a"]]])
def test_invalid_prompts(prompt: object) -> None:
    with pytest.raises(RequestError) as caught:
        completion(prompt=prompt)
    assert caught.value.param == "prompt"
