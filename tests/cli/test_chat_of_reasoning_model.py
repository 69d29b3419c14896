"""`bros-batch chat` with a model that reasons: the answer goes to stdout, and the reasoning to stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bros_batch.client.chat_stream import ask
from bros_batch.client.http_client import Client
from cli.main import main
from tests.bros_batch.web.repeating_engine import repeating_web
from tests.bros_batch.web.serving import MODEL_NAME
from tests.factories_tools import make_tool_model

THOUGHT = "Let me think.</think>Forty-two."
CALL = 'Hm.</think><tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp("reasoning")
    model = make_tool_model(directory / "model", "hermes", reasoning="prompt_opens")
    with repeating_web(directory, model) as web:
        yield web.url


def test_reasoning_goes_to_stderr(url: str) -> None:
    done = CliRunner().invoke(main, ["chat", "--url", url, THOUGHT])
    assert done.exit_code == 0, done.output
    assert done.stdout == "Forty-two.\n"
    assert done.stderr == "Let me think.\n\n"
    done = CliRunner().invoke(main, ["chat", "--url", url, "--json", THOUGHT])
    printed = json.loads(done.stdout)
    assert (printed["text"], printed["reasoning"]) == ("Forty-two.", "Let me think.")
    assert "tool_calls" not in printed


def test_calls_are_put_together(url: str) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    body: dict[str, Any] = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": CALL}],
        "tools": tools,
    }
    thoughts: list[str] = []
    with Client(url) as client:
        answer = ask(client, body, lambda piece: None, thoughts.append)
    assert "".join(thoughts) == answer.reasoning == "Hm."
    assert [(call["name"], call["arguments"]) for call in answer.calls] == [("add", '{"a": 1}')]
    assert answer.finish_reason == "tool_calls"
