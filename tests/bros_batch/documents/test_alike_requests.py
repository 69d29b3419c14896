"""Batch lines that are alike but for their prompts are parsed once, and answered as if each had been parsed."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from bros_batch.documents.alike_requests import MAX_KINDS
from bros_batch.documents.form import BATCH
from bros_batch.documents.item_requests import JobRequests, job_requests
from bros_batch.documents.lines import LineReader
from bros_batch.model_names import ModelNames
from bros_batch.openai_api.completion_response import ResponseHead
from bros_batch.openai_api.endpoint import Outcome, ServedModel
from bros_batch.request_error import RequestError
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.item_messages import Choice
from engine.wire.request_terms import PositionLogprobs, PromptLogprobs
from tests.bros_batch.openai_api.factories import served_model
from tests.factories_text import make_text_model

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

SETTINGS: list[dict[str, Any]] = [
    {},
    {"n": 2},
    {"stop": "b"},
    {"logprobs": True, "top_logprobs": 1},
    {"tools": [WEATHER], "tool_choice": "none"},
    {"prompt_logprobs": 1},
    {"return_tokens_as_token_ids": True, "logprobs": True},
    {"max_tokens": 3, "metadata": {"a": "b"}},
]


class NeverAlike:
    def without_prompt(self, body: str) -> None:
        return None

    def engine_requests(self, body: str, model: ServedModel) -> None:
        return None


def outcome(body: dict[str, Any], num_prompt_tokens: int) -> Outcome:
    """Three tokens per choice, with everything that a request may ask for."""
    ids = [10, 11, 12]
    position = PositionLogprobs(-0.5, ((10, -0.5), (11, -1.5)))
    row = struct.pack("<fif", -0.5, 11, -1.5)
    about_prompt = PromptLogprobs(1, row * (num_prompt_tokens - 1)) if "prompt_logprobs" in body else None
    choice = Choice(ids, "length", [position] * 3, prompt_logprobs=about_prompt)
    number = body.get("n", 1)
    return Outcome([choice] * number, [[5, 6]] * number, 20, 0)


def answer(requests: JobRequests, model: ServedModel, body: dict[str, Any]) -> Any:
    head = ResponseHead(requests.endpoint.path, "req_1", "m", 1)
    text = json.dumps(body)
    num_prompt_tokens = requests.engine_requests(model, text, 1).num_prompt_tokens
    return requests.response(head, model, text, outcome(body, num_prompt_tokens))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return served_model(ModelTokenizer(make_text_model(tmp_path_factory.mktemp("model"))))


def test_lines_are_answered_as_if_each_were_parsed_by_itself(model: ServedModel) -> None:
    requests = job_requests(CHAT, "m", "batch", {})
    apart = replace(requests, alike=NeverAlike())  # type: ignore[arg-type]
    for text in ("a first line", "another"):
        for settings in SETTINGS:
            body = {"model": "m", "messages": [{"role": "user", "content": text}], **settings}
            assert answer(requests, model, body) == answer(apart, model, body), settings


CHATS: list[Any] = [
    [{"role": "user", "content": "a question"}],
    [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "an ünusual question"}],
    [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "b"},
    ],
    [{"role": "user", "content": [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]}],
    [{"role": "user", "content": "a", "name": "b"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "refusal": "no"}],
    [{"role": "user", "content": "word " * 2000}],
    [{"role": "user", "content": "word " * 400}],
    [{"role": "user", "content": "a", "audio": {}}],
    [{"role": "nobody", "content": "a"}],
    [],
    "a",
    None,
]
TEXTS: list[Any] = ["a text", "", "word " * 2000, ["one", "two"], [5, 6, 7], [[5], [6, 7]], [], 7, None]
MORE_SETTINGS: list[dict[str, Any]] = [
    {"seed": 7, "temperature": 0.5, "n": 3, "max_tokens": 5, "min_tokens": 2},
    {"max_tokens": 300},
    {"max_tokens": 5000},
    {"truncate_prompt_tokens": 4, "max_tokens": 3},
    {"truncate_prompt_tokens": -1},
    {"response_format": {"type": "json_object"}, "max_tokens": 9},
    {"stop_token_ids": [10**6]},
    {"max_tokens": 0},
    {"min_tokens": 9, "max_tokens": 3},
    {"documents": [{"text": "a"}]},
    {"add_generation_prompt": False, "continue_final_message": True, "max_tokens": 3},
    {"chat_template_kwargs": {"a": 1}, "unknown": {"b": [None]}, "max_tokens": 3},
]


@pytest.mark.parametrize(
    ("path", "field", "prompts"),
    [(CHAT, "messages", CHATS), (COMPLETIONS, "prompt", TEXTS), (RESPONSES, "input", [*TEXTS, CHATS[0]])],
)
def test_lines_become_the_requests_that_they_become_by_themselves(
    model: ServedModel, path: str, field: str, prompts: list[Any]
) -> None:
    """Or the same error, whichever line came before."""
    requests = job_requests(path, "m", "batch", {})
    apart = replace(requests, alike=NeverAlike())  # type: ignore[arg-type]

    def made_by(which: JobRequests, body: str) -> Any:
        try:
            return which.engine_requests(model, body, 1)
        except RequestError as error:
            return error.message, error.param, error.code

    num_errors = 0
    for settings in [*SETTINGS, *MORE_SETTINGS]:
        for prompt in prompts:
            for extra in ({}, {"messages": CHATS[0]}):  # which no endpoint but the chats' knows
                body = json.dumps({"model": "m", **extra, field: prompt, **settings})
                made = made_by(requests, body)
                assert made == made_by(apart, body), (settings, prompt)
                num_errors += isinstance(made, tuple)
    assert 0 < num_errors < len(prompts) * (len(SETTINGS) + len(MORE_SETTINGS)) * 2
    for damaged in ("", "[]", '{"model": "m"', '{"model": "m"}', '{"model": "m", "prompt": "\\ud800"}'):
        assert made_by(requests, damaged) == made_by(apart, damaged)


@pytest.mark.parametrize(
    ("path", "field", "prompts"),
    [(CHAT, "messages", CHATS), (COMPLETIONS, "prompt", TEXTS), (RESPONSES, "input", [*TEXTS, CHATS[0]])],
)
@pytest.mark.parametrize("strict", [False, True])
def test_lines_are_checked_as_if_each_were_alone(
    path: str, field: str, prompts: list[Any], strict: bool
) -> None:
    def reader() -> LineReader:
        return LineReader(path, ModelNames("m"), BATCH, strict=strict)

    settings = [*SETTINGS, *MORE_SETTINGS, {"stream": True}, {"model": "another"}, {"user": "u", "odd": 1}]
    settings += [{"messages": CHATS[0]}, {"n": 0}, {"temperature": float("nan")}]
    together, num_good = reader(), 0
    for each in settings:
        for prompt in prompts:
            body = {"model": "m", field: prompt, **each}
            line = json.dumps({"custom_id": "a", "method": "POST", "url": path, "body": body}).encode()
            alone = reader()
            item = alone.read(line, 1)
            assert together.read(line, 1) == item, body
            assert alone.ignored <= together.ignored
            num_good += item.error_code is None
    assert 0 < num_good < len(settings) * len(prompts)


def test_plain_lines_are_not_parsed_one_by_one(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = job_requests(CHAT, "m", "batch", {})
    num_parsed = 0
    parse = requests.endpoint.parse

    def counting(raw: bytes | str) -> Any:
        nonlocal num_parsed
        num_parsed += 1
        return parse(raw)

    monkeypatch.setattr(requests.endpoint, "parse", counting)
    reader = LineReader(CHAT, None, BATCH)
    for number in range(20):
        body = {"model": "m", "messages": [{"role": "user", "content": f"line {number}"}], "max_tokens": 5}
        requests.engine_requests(model, json.dumps(body), 1)
        line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": body}
        assert reader.read(json.dumps(line).encode(), 1).error_code is None
    assert num_parsed == 2, "once when lines are checked, and once when they become requests"


def test_a_body_whose_fields_need_its_own_prompt_is_parsed_whole(model: ServedModel) -> None:
    requests = job_requests(COMPLETIONS, "m", "batch", {})
    body = {"model": "m", "prompt": "an echo", "echo": True, "max_tokens": 3}
    assert requests.alike.without_prompt(json.dumps(body)) is None
    assert answer(requests, model, body)["choices"][0]["text"].startswith("an echo")


def test_lines_that_are_alike_share_one_request_and_the_others_are_forgotten() -> None:
    alike = job_requests(COMPLETIONS, "m", "batch", {}).alike

    def request(prompt: str, seed: int) -> Any:
        return alike.without_prompt(json.dumps({"model": "m", "seed": seed, "prompt": prompt}))

    first = request("a", 0)
    assert request("b", 0) is first and first.seed == 0
    for seed in range(1, MAX_KINDS + 1):
        assert request("a", seed).seed == seed
    assert request("a", 0) is not first
