"""Calls of a real model with random weights: only a grammar can make its arguments valid."""

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
from tests.engines import running_engine
from tests.factories_models import make_model
from tests.factories_tools import make_tool_model

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


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    directory: Path = tmp_path_factory.mktemp("random")
    texts = make_tool_model(directory / "texts", "hermes")
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
    with (
        running_engine(directory, runner, **names) as engine,
        serving(web_settings(directory / "web", model, engine_url=engine.url)) as web,
        web.openai() as client,
    ):
        yield client


def calls_of(client: OpenAI, seed: int, **fields: Any) -> tuple[Any, list[Any]]:
    choice = client.chat.completions.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": f"Question {seed}"}],
        tools=TOOLS,
        max_tokens=150,
        temperature=1.0,
        seed=seed,
        parallel_tool_calls=False,
        **fields,
    ).choices[0]
    calls = choice.message.tool_calls or []
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
    return choice, calls


def test_required_and_named_calls_are_made_and_valid(client: OpenAI) -> None:
    for seed in range(3):
        choice, calls = calls_of(client, seed, tool_choice="required")
        assert len(calls) == 1 and choice.message.content is None
        assert choice.finish_reason == "tool_calls"
        named = {"type": "function", "function": {"name": "beta"}}
        choice, calls = calls_of(client, seed, tool_choice=named)
        assert [call.function.name for call in calls] == ["beta"]
        assert choice.finish_reason == "stop"
