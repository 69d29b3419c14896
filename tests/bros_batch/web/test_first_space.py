"""A tokenizer whose decoder strips the first space: an answer keeps the space between it and its prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from bros_batch.openai_api.completion_response import ResponseHead
from bros_batch.openai_api.endpoint import outcome_of
from bros_batch.openai_api.endpoints import COMPLETIONS
from bros_batch.openai_api.registry import endpoint_at
from bros_batch.text.tokenizer import ModelTokenizer
from engine.core.events import FinishedEvent, TokenEvent
from engine.core.terms import FinishReason, Lane, SamplingParams
from engine.lanes.pulled_item import PulledItem
from engine.runner.simulated import SimulatedRunner
from engine.wire.item_messages import ItemRequest, decode_item_result, encode
from engine.wire.request_terms import Sampling
from tests.bros_batch.openai_api.factories import completion, served_model
from tests.bros_batch.web.serving import MODEL_NAME, serving, web_settings
from tests.engines import RunningEngine, running_engine
from tests.factories_text import make_sentencepiece_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sentencepiece_model(tmp_path_factory.mktemp("sentencepiece") / "model")


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator[RunningEngine]:
    with running_engine(directory, model=str(directory), served_model_name=MODEL_NAME) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(directory: Path, engine: RunningEngine) -> Iterator[OpenAI]:
    settings = web_settings(directory.parent / "web", directory, engine_url=engine.url)
    with serving(settings) as web, web.openai() as client:
        yield client


def first_word(engine: RunningEngine, tokenizer: ModelTokenizer) -> tuple[str, list[int]]:
    """A prompt after which the simulated model's first token is a word with a space, and the output."""
    assert isinstance(engine.runner, SimulatedRunner)
    for length in range(1, 2000):
        prompt = "he a " * length + "b"
        ids = tokenizer.encode_prompt(prompt)
        if len(ids) > 1500:
            break
        output = engine.runner.continuation(ids, SamplingParams(max_tokens=1, ignore_eos=True))
        if tokenizer.bytes_of(output[0]).startswith(b" ") and len(tokenizer.bytes_of(output[0])) > 1:
            return prompt, output
    raise AssertionError("no prompt was found")


def test_completions_and_chats_keep_the_space(directory: Path, engine: RunningEngine, client: OpenAI) -> None:
    tokenizer = ModelTokenizer(directory)
    prompt, output = first_word(engine, tokenizer)
    expected = tokenizer.decode([*tokenizer.encode_prompt(prompt), *output]).removeprefix(prompt)
    assert expected.startswith(" ")
    asked: dict[str, Any] = {"model": MODEL_NAME, "max_tokens": 1, "extra_body": {"ignore_eos": True}}
    whole = client.completions.create(prompt=prompt, **asked)
    assert whole.choices[0].text == expected
    chunks = list(client.completions.create(prompt=prompt, stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected

    messages: Any = [{"role": "user", "content": "he a b"}]
    header = tokenizer.encode_chat(messages)
    assert isinstance(engine.runner, SimulatedRunner)
    output = engine.runner.continuation(header, SamplingParams(max_tokens=1, ignore_eos=True))
    chat = client.chat.completions.create(messages=messages, **asked)
    before = tokenizer.decode(header)
    assert before + (chat.choices[0].message.content or "") == tokenizer.decode([*header, *output])


def test_bulk_keeps_the_space(directory: Path, engine: RunningEngine) -> None:
    tokenizer = ModelTokenizer(directory)
    prompt, output = first_word(engine, tokenizer)
    ids = tokenizer.encode_prompt(prompt)
    sampling = Sampling(max_tokens=1, ignore_eos=True)
    pulled = PulledItem(b"1-0", ItemRequest(1, 1, "job", ids, sampling))
    for token_id in output:
        pulled.record(0, TokenEvent(pulled.request_ids[0], token_id, None))
    end = FinishedEvent(pulled.request_ids[0], Lane.BE, FinishReason.LENGTH, len(ids), 1, 0, 0.1)
    pulled.record(0, end)
    result = decode_item_result(encode(pulled.result("engine")))
    request = completion(prompt=ids, max_tokens=1, ignore_eos=True)
    outcome = outcome_of(result)
    head = ResponseHead(COMPLETIONS, "req_1", "m", 5)
    body = endpoint_at(COMPLETIONS).response(head, request, served_model(tokenizer), outcome)
    assert body["choices"][0]["text"] == tokenizer.decode([*ids, *output]).removeprefix(prompt)
