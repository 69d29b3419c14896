"""Every field that a client can make long counts as work, so that long ones do not keep the event loop from others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bros_batch.openai_api.registry import parse_body
from bros_batch.request_error import RequestError

LONG = "word " * 20_000
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
FUNCTION: dict[str, Any] = {"name": "f", "description": "-", "parameters": {"type": "object"}}
MANY = [
    {"type": "function", "function": {**FUNCTION, "name": f"f{n}", "description": "x" * 250}}
    for n in range(400)
]
QUESTIONS = [{"type": "predicate", "instructions": "x" * 250}] * 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": LONG}]}),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "x", "name": LONG}]}),
        ("/v1/chat/completions", {**CHAT, "documents": [{"text": LONG}]}),
        ("/v1/chat/completions", {**CHAT, "tools": MANY}),
        (
            "/v1/chat/completions",
            {**CHAT, "tools": [{"type": "function", "function": {**FUNCTION, "parameters": {"description": LONG}}}]},
        ),
        ("/v1/responses", {"model": "m", "input": "x", "instructions": LONG}),
        ("/v1/completions", {"model": "m", "prompt": [LONG]}),
        ("/v1/completions", {"model": "m", "prompt": [5] * 100_000}),
        ("/v1/embeddings", {"model": "m", "input": ["x"] * 2048}),
        ("/v1/embeddings", {"model": "m", "input": [[5] * 50] * 2000}),
        ("/v1/decisions", {"model": "m", "input": "x", "questions": QUESTIONS}),
        ("/v1/systemone", {"model": "m", "state": "x", "questions": {"q": {"type": "noul", "instructions": LONG}}}),
        (
            "/v1/systemone",
            {"model": "m", "state": "x", "questions": {"q": {"type": "choice", "criteria": {"a": LONG, "b": None}}}},
        ),
    ],
)  # fmt: skip
def test_what_is_long_counts(path: str, body: dict[str, Any]) -> None:
    assert parse_body(path, json.dumps(body)).num_prompt_chars >= 100_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/systemone", {"model": "m", "state": "x", "questions": {"q": {"type": "noul"}}}),
    ],
)
def test_variables_of_a_template_are_limited(path: str, body: dict[str, Any]) -> None:
    """A cache of the server keeps some of them."""
    parse_body(path, json.dumps({**body, "chat_template_kwargs": {"a": "x" * 60_000}}))
    with pytest.raises(RequestError, match="must have at most 65,536 characters") as caught:
        parse_body(path, json.dumps({**body, "chat_template_kwargs": {"a": "x" * 70_000}}))
    assert caught.value.param == "chat_template_kwargs"
