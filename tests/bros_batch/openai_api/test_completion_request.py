"""Bodies: what is accepted, and that what is not is refused by the name of the field at fault."""

from __future__ import annotations

import json

import pytest

from bros_batch.openai_api.completion_request import ChatCompletionRequest, CompletionRequest, parse_body
from bros_batch.openai_api.sampling import fitted_sampling, lane_of, sampling_of, slo_of
from bros_batch.request_error import RequestError

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(**fields: object) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    request = parse_body(CHAT, json.dumps(body))
    assert isinstance(request, ChatCompletionRequest)
    return request


def completion(**fields: object) -> CompletionRequest:
    request = parse_body(TEXT, json.dumps({"model": "m", "prompt": "hi", **fields}))
    assert isinstance(request, CompletionRequest)
    return request


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"foo": 1}, "foo", "Unknown parameter"),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": True}, "n", "valid integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "greater than or equal to 1"),
        ({"stop": [""]}, "stop", "1 to 1000 characters"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": [1]}, "stop", "list of strings"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported yet"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported yet"),
        ({"audio": {"voice": "x"}}, "audio", "not supported yet"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "not a token id"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "-100 to 100"),
        ({"top_logprobs": 5}, "top_logprobs", "'logprobs' to be true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"slo": {"ttft_ms": 100}}, "slo.tpot_ms", "Missing"),
        ({"slo": {"ttft_ms": 0, "tpot_ms": 1}}, "slo.ttft_ms", "greater than 0"),
        ({"service_tier": "gold"}, "service_tier", "'flex'"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "greater than the maximum"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "'stream' set to true"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "Missing"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "not null"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "'image_url' are not supported",
        ),
    ],
)
def test_refuses_by_name(fields: dict[str, object], param: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert said in caught.value.message
    assert param.split(".")[0].split("[")[0] in caught.value.message


@pytest.mark.parametrize(
    "raw", ["", "{", "[]", "null", "5", '"x"', "[" * 5000, b"\xff\xfe", '{"model": "\\ud800"}']
)
def test_refuses_what_is_no_json_object(raw: str | bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_body(CHAT, raw)
    assert caught.value.param is None
    assert "JSON" in caught.value.message


def test_names_a_missing_field() -> None:
    with pytest.raises(RequestError) as caught:
        parse_body(CHAT, '{"model": "m"}')
    assert caught.value.param == "messages"
    with pytest.raises(RequestError) as caught:
        parse_body("/v1/embeddings", "{}")
    assert caught.value.param == "endpoint"


def test_accepts_what_has_no_effect_here() -> None:
    harmless = {
        "user": "u", "metadata": {"a": "b"}, "store": True, "tools": [], "tool_choice": "none", "audio": None,
        "response_format": {"type": "text"}, "parallel_tool_calls": True, "modalities": ["text"],
        "safety_identifier": "x", "prompt_cache_key": "k",
    }  # fmt: skip
    assert sampling_of(chat(**harmless), 7) == sampling_of(chat(), 7)


def test_an_earlier_answer_can_be_sent_back() -> None:
    answer = {"role": "assistant", "content": "yes", "refusal": None, "annotations": [], "tool_calls": []}
    request = chat(
        messages=[{"role": "developer", "content": "be brief"}, answer, {"role": "user", "content": "?"}]
    )
    assert [turn.as_template_input() for turn in request.messages] == [
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
def test_no_forms_of_a_prompt(prompt: object) -> None:
    with pytest.raises(RequestError) as caught:
        completion(prompt=prompt)
    assert caught.value.param == "prompt"


def test_sampling_has_every_field() -> None:
    request = chat(
        max_tokens=5, max_completion_tokens=9, min_tokens=2, temperature=0, top_p=0.5, top_k=-1, min_p=0.1, seed=-3,
        stop="END", stop_token_ids=[7], ignore_eos=True, repetition_penalty=1.5, presence_penalty=-1,
        frequency_penalty=2, logit_bias={"5": -100}, logprobs=True, top_logprobs=3,
    )  # fmt: skip
    sampling = sampling_of(request, 100)
    assert (sampling.max_tokens, sampling.min_tokens, sampling.temperature, sampling.top_p) == (
        9,
        2,
        0.0,
        0.5,
    )
    assert (sampling.top_k, sampling.min_p, sampling.seed, sampling.stop) == (0, 0.1, -3, ("END",))
    assert (sampling.stop_token_ids, sampling.ignore_eos, sampling.repetition_penalty) == ((7,), True, 1.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-1.0, 2.0)
    assert (sampling.logit_bias, sampling.logprobs) == (((5, -100.0),), 3)
    assert sampling_of(completion(logprobs=0), 100).logprobs == 0
    assert sampling_of(completion(), 100).max_tokens == 100


def test_lanes_and_slo() -> None:
    assert (
        lane_of(chat())
        == lane_of(chat(service_tier="default", priority=0))
        == lane_of(chat(priority=-1))
        == "rt"
    )
    assert lane_of(chat(service_tier="flex")) == lane_of(chat(priority=1)) == "be"
    slo = slo_of(chat(slo={"ttft_ms": 250, "tpot_ms": 50}))
    assert slo is not None
    assert (slo.ttft_s, slo.tpot_s) == (0.25, 0.05)
    assert slo_of(chat()) is None


def test_the_answer_fits_the_context() -> None:
    assert fitted_sampling(chat(), 90, max_model_len=100, default_max_tokens=256).max_tokens == 10
    assert (
        fitted_sampling(chat(max_tokens=10), 90, max_model_len=100, default_max_tokens=256).max_tokens == 10
    )
    for request, num_prompt_tokens in ((chat(max_tokens=11), 90), (chat(), 100), (chat(), 5000)):
        with pytest.raises(RequestError) as caught:
            fitted_sampling(request, num_prompt_tokens, max_model_len=100, default_max_tokens=256)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
        assert str(num_prompt_tokens) in caught.value.message
    with pytest.raises(RequestError, match="no tokens"):
        fitted_sampling(completion(prompt=""), 0, max_model_len=100, default_max_tokens=256)
