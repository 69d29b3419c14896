"""What clients send besides what the API defines: accepted where it asks for nothing, and otherwise an error."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bros_batch.openai_api.message import template_messages
from bros_batch.openai_api.registry import parse_body
from bros_batch.openai_api.sampling import sampling_of
from bros_batch.openai_api.sampling_defaults import SamplingDefaults
from bros_batch.openai_api.validation import check_strict
from bros_batch.request_error import RequestError
from engine.wire.request_terms import Sampling
from tests.bros_batch.openai_api.factories import CHAT, TEXT, chat, completion

DEFAULTS = SamplingDefaults()
USER = {"role": "user", "content": "hi"}


def sampled(**fields: Any) -> Sampling:
    return sampling_of(chat(**fields), DEFAULTS)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": -1},
        {"max_completion_tokens": -1, "max_tokens": None},
        {"stop": ""},
        {"stop": [""]},
        {"stop": []},
        {"top_k": -1},
        {"n": None, "seed": None, "logit_bias": None, "logprobs": False, "top_logprobs": 0},
        {"temperature": 1, "top_p": 1, "presence_penalty": 0, "repetition_penalty": 1},
        {"skip_special_tokens": True, "spaces_between_special_tokens": True, "add_generation_prompt": True},
        {
            "echo": False,
            "prompt_logprobs": None,
            "best_of": 1,
            "length_penalty": 1.0,
            "use_beam_search": False,
        },
        {"tools": None, "tool_choice": "auto", "parallel_tool_calls": True, "functions": []},
        {"response_format": {"type": "text"}, "guided_json": None, "structured_outputs": {}},
        {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"},
        {"foo": None, "bar": False, "baz": [], "qux": {}},
        {"stream_options": {"include_usage": False}},
        {"reasoning_effort": "none", "verbosity": "low"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_values_that_ask_for_nothing_change_nothing(fields: dict[str, Any]) -> None:
    assert sampled(**fields) == sampled()


def test_a_top_p_of_0_is_greedy() -> None:
    assert sampled(top_p=0, temperature=1.5).temperature == 0
    assert sampled(top_p=0.0) == sampled(top_p=1, temperature=0)


def test_many_stop_strings_are_served() -> None:
    strings = [f"stop {number}" for number in range(64)]
    assert sampled(stop=["", *strings, "stop 5"]).stop == tuple(strings)


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63, 2**64, -(2**80), 10**300])
def test_every_whole_number_is_a_seed(seed: int) -> None:
    found = sampled(seed=seed, n=128)
    assert found == sampled(seed=seed, n=128)
    assert all(-(2**63) <= (found.for_choice(index).seed or 0) < 2**63 for index in (0, 127))


def test_whole_numbers_may_be_written_as_floats() -> None:
    names = ("max_tokens", "n", "seed", "top_k", "min_tokens", "priority", "top_logprobs")
    whole: dict[str, Any] = {name: number for number, name in enumerate(names, start=2)}
    whole |= {"min_tokens": 1, "logprobs": True, "stop_token_ids": [5, 6]}
    as_floats = {
        name: value if value is True else float(value)
        for name, value in whole.items()
        if name != "stop_token_ids"
    }
    as_floats["stop_token_ids"] = [5.0, 6.0]
    assert sampled(**as_floats) == sampled(**whole)
    with pytest.raises(RequestError, match="'max_tokens'"):
        chat(max_tokens=5.5)


def test_both_endpoints_take_logprobs_as_a_flag_and_as_a_number() -> None:
    assert [chat(logprobs=value).num_logprobs for value in (True, False, None, 0, 5)] == [
        0,
        None,
        None,
        None,
        5,
    ]
    assert chat(logprobs=True, top_logprobs=3).num_logprobs == 3
    found = [completion(logprobs=value).num_logprobs for value in (True, False, None, 0, 5)]
    assert found == [1, None, None, 0, 5]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"messages": [{**USER, "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls[0].function"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options"),
    ],
)  # fmt: skip
def test_values_that_ask_for_something_are_rejected_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert f"'{param}'" in caught.value.message


def test_fields_without_effect_are_named() -> None:
    answer = {
        "role": "assistant",
        "content": None,
        "id": "x",
        "reasoning": "r",
        "provider_specific_fields": None,
    }
    request = chat(user="u", store=None, foo=False, bar=None, messages=[USER, {**answer, "refusal": "no"}])
    assert set(request.ignored_names()) == {"user", "foo", "messages[1].id", "messages[1].refusal"}
    assert list(chat().ignored_names()) == []


def test_unknown_fields_change_nothing_unless_the_server_is_strict() -> None:
    message = {**USER, "foo": 1, "cache_control": {"type": "ephemeral"}}
    options = {"include_usage": True, "foo": 1}
    request = chat(
        max_token=5, bar=0, messages=[USER, message], stream=True, stream_options=options, user="u"
    )
    assert sampling_of(request, DEFAULTS) == sampled()
    unknown = ["max_token", "bar", "stream_options.foo", "messages[1].foo", "messages[1].cache_control"]
    assert set(request.unknown_names()) == set(unknown)
    assert set(request.ignored_names()) == {*unknown, "user"}
    for fields, name in (
        ({"max_token": None}, "max_token"),
        ({"messages": [USER, message]}, "messages[1].foo"),
        ({"stream": True, "stream_options": {"foo": False}}, "stream_options.foo"),
    ):
        with pytest.raises(RequestError, match=re.escape(f"Unknown parameter: '{name}'.")) as caught:
            check_strict(chat(**fields))
        assert caught.value.param == name
    check_strict(chat(user="u", messages=[{**USER, "id": "x"}], skip_special_tokens=True))


def test_reasoning_of_an_earlier_answer_reaches_the_template() -> None:
    answer = {"role": "assistant", "content": None, "reasoning_content": "Hm."}
    message = template_messages(chat(messages=[USER, answer]).messages)[1]
    assert message == {"role": "assistant", "content": "", "reasoning_content": "Hm.", "reasoning": "Hm."}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_any_value_of_any_field_is_accepted_or_rejected_by_name(data: st.DataObject) -> None:
    endpoint = data.draw(st.sampled_from([CHAT, TEXT]))
    body: dict[str, Any] = (
        {"model": "m", "messages": [USER]} if endpoint == CHAT else {"model": "m", "prompt": "x"}
    )
    known = sorted(type(chat() if endpoint == CHAT else completion()).model_fields)
    name = data.draw(st.sampled_from(known) | st.text(max_size=8))
    body[name] = data.draw(JSON | st.sampled_from([-1, 0, 1.0, 2**64, 10**400, True, "", [""], {"5": 1.0}]))
    try:
        request = parse_body(endpoint, json.dumps(body))
    except RequestError as error:
        assert error.param is not None
        assert error.message
    else:
        assert isinstance(sampling_of(request, DEFAULTS, 100), Sampling)
        list(request.ignored_names())


def test_a_million_wrong_messages_are_one_error() -> None:
    for fields in ({"messages": [0] * 500_000}, {"stop_token_ids": ["x"] * 500_000}):
        with pytest.raises(RequestError, match=r"\[0\]"):
            chat(**fields)
