"""Calls of a real model with random weights, in each form of calls: only a grammar can make its arguments valid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai import OpenAI

from engine.__main__ import make_runner
from engine.config import EngineConfig
from tests.bros_batch.web.serving import MODEL_NAME, serving, web_settings
from tests.engines import RunningEngine, running_engine
from tests.factories_models import make_model
from tests.factories_tools import ToolStyle, make_tool_models

PARAMETERS = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["a", "b"]}},
    "required": ["n", "kind"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS, "strict": True}}
    for name in ("alpha", "beta")
]

# Without "mistral", whose vocabulary lacks a token that "mistral_named" has.
STYLES: tuple[ToolStyle, ...] = ("hermes", "llama3_json", "mistral_named", "json")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[ToolStyle, Path]:
    return make_tool_models(tmp_path_factory.mktemp("texts"), STYLES)


@pytest.fixture(scope="module")
def engine(
    tmp_path_factory: pytest.TempPathFactory, models: dict[ToolStyle, Path]
) -> Iterator[RunningEngine]:
    """One engine for all: their vocabularies are the same, and only their templates differ."""
    directory = tmp_path_factory.mktemp("random")
    texts = models["hermes"]
    vocab_size = json.loads((texts / "config.json").read_text())["vocab_size"]
    model = make_model("llama", directory, vocab_size=vocab_size, max_position_embeddings=2048)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(texts / name, model / name)
    names: dict[str, Any] = {
        "model": str(model),
        "served_model_name": MODEL_NAME,
        "device": "cpu",
        "max_model_len": 2048,
        "num_kv_blocks": 4096,  # by default it fills two fifths of the free memory with zeros
    }
    runner = make_runner(EngineConfig(listen="unused", runner="torch", **names))
    with running_engine(directory, runner, **names) as engine:
        yield engine


@pytest.fixture(scope="module", params=STYLES)
def style(request: pytest.FixtureRequest) -> ToolStyle:
    style: ToolStyle = request.param
    return style


@pytest.fixture(scope="module")
def client(
    style: ToolStyle,
    tmp_path_factory: pytest.TempPathFactory,
    engine: RunningEngine,
    models: dict[ToolStyle, Path],
) -> Iterator[OpenAI]:
    settings = web_settings(tmp_path_factory.mktemp("web"), models[style], engine_url=engine.url)
    with serving(settings) as web, web.openai() as client:
        yield client


def calls_of(client: OpenAI, seed: int, **fields: Any) -> tuple[Any, list[Any]]:
    """Returns the answer and its complete calls, which are the same as a stream."""
    asked: dict[str, Any] = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": f"Question {seed}"}],
        "tools": TOOLS,
        "max_tokens": 150,
        "temperature": 1.0,
        "seed": seed,
        **fields,
    }
    choice = client.chat.completions.create(**asked).choices[0]
    content, reason, streamed = "", None, list[list[str]]()
    for chunk in client.chat.completions.create(**asked, stream=True):
        delta, reason = chunk.choices[0].delta, chunk.choices[0].finish_reason or reason
        content += delta.content or ""
        for part in delta.tool_calls or ():
            if part.function.name:
                streamed.append([part.function.name, ""])
            assert part.index == len(streamed) - 1
            streamed[-1][1] += part.function.arguments or ""
    calls: list[Any] = choice.message.tool_calls or []
    assert (content, reason) == (choice.message.content or "", choice.finish_reason)
    assert streamed == [[call.function.name, call.function.arguments] for call in calls]
    if choice.finish_reason == "length":  # the last call may have been cut
        calls = calls[:-1]
    for call in calls:
        assert call.function.name in ("alpha", "beta")
        jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
    return choice, calls


def test_required_and_named_calls_are_made_and_valid(client: OpenAI) -> None:
    for seed in range(2):
        choice, calls = calls_of(client, seed, tool_choice="required", parallel_tool_calls=False)
        assert len(calls) == 1 and choice.message.content is None
        assert choice.finish_reason == "tool_calls"
        named = {"type": "function", "function": {"name": "beta"}}
        choice, calls = calls_of(client, seed, tool_choice=named, parallel_tool_calls=False)
        assert [call.function.name for call in calls] == ["beta"]
        assert choice.finish_reason == "stop"


def test_several_calls_are_all_valid(style: ToolStyle, client: OpenAI) -> None:
    """The model may not end after the first."""
    fields = {"tool_choice": "required", "max_tokens": 320, "extra_body": {"min_tokens": 300}}
    found = [calls_of(client, seed, **fields)[1] for seed in range(2)]
    # In plain JSON, an answer may be a single object, after which nothing can follow.
    assert max(map(len, found)) > 1 or style == "json"


def test_calls_of_strict_functions_are_valid_if_there_are_any(client: OpenAI) -> None:
    for seed in range(3):
        choice, calls = calls_of(client, seed)
        assert calls or choice.message.content or choice.finish_reason == "length"
