"""Decisions, log-probabilities of prompts and embeddings over HTTP, with OpenAI's client."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.engines import RunningEngine, running_engine, stats_of
from tests.services import wait_for

QUESTIONS: Any = [
    {"type": "predicate", "name": "urgent", "instructions": "This is urgent."},
    {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": True}]},
    {"type": "score", "instructions": "How good?", "levels": [{"label": "bad"}, {"label": "fine"}]},
]


@pytest.fixture(scope="module")
def embedding_client(
    tmp_path_factory: pytest.TempPathFactory, text_model: Path, engine: RunningEngine
) -> Iterator[OpenAI]:
    directory = tmp_path_factory.mktemp("web")
    settings = web_settings(directory, text_model, engine_url=engine.url, embeddings=True)
    with serving(settings) as web, web.openai() as client:
        yield client


def test_decisions_are_answered_in_order(client: OpenAI) -> None:
    decision = client.decisions.create(model=MODEL_NAME, input="Please hurry.", questions=QUESTIONS)
    predicate, choice, score = decision.answers
    assert predicate.type == "predicate"
    assert (predicate.name, 0 < predicate.probability < 1) == ("urgent", True)
    assert choice.type == "choice"
    assert [each.value for each in choice.probabilities] == ["a", True]
    assert math.isclose(sum(each.probability for each in choice.probabilities), 1)
    assert score.type == "score"
    assert 0 <= score.score <= 1
    assert decision.usage.output_tokens == 0
    assert decision.usage.input_tokens > 0


def test_many_questions_are_one_request(client: OpenAI) -> None:
    asked = [{**QUESTIONS[0], "name": str(number)} for number in range(400)]
    decision = client.decisions.create(model=MODEL_NAME, input="Please hurry.", questions=asked)
    assert [answer.name for answer in decision.answers] == [str(number) for number in range(400)]


def test_a_disconnect_cancels_all_questions(tmp_path: Path, text_model: Path) -> None:
    slow: dict[str, Any] = {"simulated_step_s": 0.2, "max_num_seqs": 8}
    with (
        running_engine(tmp_path, model=str(text_model), served_model_name=MODEL_NAME, **slow) as engine,
        serving(web_settings(tmp_path / "web", text_model, engine_url=engine.url)) as web,
    ):
        body = {"model": MODEL_NAME, "input": "Please hurry.", "questions": QUESTIONS[:1] * 400}

        def lane() -> dict[str, Any]:
            values: dict[str, Any] = stats_of(engine)["lanes"]["rt"]
            return values

        with httpx.Client(base_url=web.url, timeout=3.0) as http, pytest.raises(httpx.ReadTimeout):
            http.post("/v1/decisions", json=body)
        wait_for(lambda: not lane()["running"] and not lane()["waiting"], "the end of the request")
        finished = lane()["finished"]
        assert 0 < finished.get("length", 0) < 400
        assert finished.get("abort", 0) > 0


def test_a_rejection_of_later_questions_ends_the_others(tmp_path: Path, text_model: Path) -> None:
    slow: dict[str, Any] = {"simulated_step_s": 0.2, "max_num_seqs": 8, "max_waiting_rt": 128}
    with (
        running_engine(tmp_path, model=str(text_model), served_model_name=MODEL_NAME, **slow) as engine,
        serving(web_settings(tmp_path / "web", text_model, engine_url=engine.url)) as web,
    ):
        body = {"model": MODEL_NAME, "input": "Please hurry.", "questions": QUESTIONS[:1] * 400}
        answer = httpx.post(f"{web.url}/v1/decisions", json=body, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
        assert stats_of(engine)["lanes"]["rt"]["finished"].get("length", 0) < 128


def test_an_echoed_prompt_has_its_log_probabilities(client: OpenAI, web: Web) -> None:
    prompt = "he a b"
    asked: dict[str, Any] = {"model": MODEL_NAME, "prompt": prompt, "temperature": 0}
    alone = client.completions.create(**asked, max_tokens=0, echo=True, logprobs=2).choices[0]
    num_tokens = len(web.tokenizer.encode_prompt(prompt))
    assert (alone.text, alone.finish_reason) == (prompt, "length")
    assert alone.logprobs is not None
    assert alone.logprobs.token_logprobs is not None
    assert alone.logprobs.token_logprobs[0] is None
    assert all(logprob < 0 for logprob in alone.logprobs.token_logprobs[1:])
    fields = (alone.logprobs.tokens, alone.logprobs.top_logprobs, alone.logprobs.text_offset)
    assert [len(field or ()) for field in fields] == [num_tokens] * 3

    both = client.completions.create(
        **asked, max_tokens=2, echo=True, logprobs=2, extra_body={"ignore_eos": True}
    ).choices[0]
    output = client.completions.create(
        **asked, max_tokens=2, logprobs=2, extra_body={"ignore_eos": True}
    ).choices[0]
    assert both.text == prompt + output.text
    assert both.logprobs is not None
    assert output.logprobs is not None
    assert both.logprobs.tokens == (alone.logprobs.tokens or []) + (output.logprobs.tokens or [])
    assert both.logprobs.text_offset is not None
    assert both.logprobs.text_offset[num_tokens:] == [
        len(prompt) + offset for offset in output.logprobs.text_offset or ()
    ]


def test_an_echo_without_logprobs_and_output_is_the_prompt(client: OpenAI) -> None:
    for prompt in ("he a b", ["he", "a b"]):
        found = client.completions.create(model=MODEL_NAME, prompt=prompt, max_tokens=0, echo=True)
        assert [choice.text for choice in found.choices] == ([prompt] if isinstance(prompt, str) else prompt)
        assert all(choice.logprobs is None for choice in found.choices)


def test_prompt_logprobs_are_those_of_vllm(client: OpenAI, web: Web) -> None:
    asked = {"prompt_logprobs": 1}
    text = client.completions.create(model=MODEL_NAME, prompt="he a b", max_tokens=1, extra_body=asked)
    ids = web.tokenizer.encode_prompt("he a b")
    (first, *others) = text.choices[0].prompt_logprobs  # type: ignore[attr-defined]
    assert first is None
    for token_id, entries in zip(ids[1:], others, strict=True):
        assert entries[str(token_id)]["decoded_token"] == web.tokenizer.bytes_of(token_id).decode()
        assert 1 <= len(entries) <= 2
    messages: Any = [{"role": "user", "content": "he a b"}]
    chat = client.chat.completions.create(model=MODEL_NAME, messages=messages, max_tokens=1, extra_body=asked)
    assert len(chat.prompt_logprobs) == len(web.tokenizer.encode_chat(messages))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("max_tokens", {"max_tokens": 0}),
        ("echo", {"echo": True, "stream": True}),
        ("prompt_logprobs", {"prompt_logprobs": 21}),
        ("prompt_logprobs", {"prompt_logprobs": -1}),
    ],
)
def test_questions_about_a_prompt_that_cannot_be_answered(
    client: OpenAI, param: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.completions.create(model=MODEL_NAME, prompt="he", extra_body=fields)
    assert caught.value.param == param


def test_embeddings_have_length_1_in_both_encodings(embedding_client: OpenAI, web: Web) -> None:
    create = embedding_client.embeddings.create
    found = create(model=MODEL_NAME, input=["he a b", "a"])  # as base64, which the client decodes
    assert [each.index for each in found.data] == [0, 1]
    for each in found.data:
        assert math.isclose(sum(value * value for value in each.embedding), 1, rel_tol=1e-5)
    ids = web.tokenizer.encode_prompt("he a b")
    assert found.usage.prompt_tokens == len(ids) + len(web.tokenizer.encode_prompt("a"))
    floats = create(model=MODEL_NAME, input=ids, encoding_format="float").data[0].embedding
    assert floats == pytest.approx(found.data[0].embedding, abs=1e-6)
    raw: Any = embedding_client.post(
        "/embeddings",
        body={"model": MODEL_NAME, "input": [ids], "encoding_format": "base64", "dimensions": 2},
        cast_to=object,
    )
    short = struct.unpack("<2f", base64.b64decode(raw["data"][0]["embedding"]))
    scale = math.hypot(*floats[:2])
    assert short == pytest.approx([value / scale for value in floats[:2]], abs=1e-5)


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("input[1]", {"input": ["a", ""]}),
        ("dimensions", {"input": "a", "dimensions": 10**6}),
        ("input", {"input": []}),
    ],
)
def test_embeddings_that_cannot_be_made(embedding_client: OpenAI, param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as caught:
        embedding_client.embeddings.create(model=MODEL_NAME, **fields)
    assert caught.value.param == param


def test_a_model_that_makes_no_embeddings_says_so(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="--embeddings"):
        client.embeddings.create(model=MODEL_NAME, input="a")
