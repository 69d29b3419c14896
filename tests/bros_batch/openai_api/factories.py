"""Requests for tests, with all required fields set."""

from __future__ import annotations

import json

from bros_batch.openai_api.completion_request import ChatCompletionRequest, CompletionRequest, parse_body

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
