"""Requests for tests, with all required fields set."""

from __future__ import annotations

import json

from bros_batch.openai_api.chat_request import ChatCompletionRequest, parse_chat
from bros_batch.openai_api.completion_request import CompletionRequest, parse_completion
from bros_batch.openai_api.endpoint import ServedModel
from bros_batch.openai_api.sampling_defaults import SamplingDefaults
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.limits import ModelLimits

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(**fields: object) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat(json.dumps(body))


def completion(**fields: object) -> CompletionRequest:
    return parse_completion(json.dumps({"model": "m", "prompt": "hi", **fields}))


def served_model(tokenizer: ModelTokenizer, max_model_len: int = 512) -> ServedModel:
    """A model with this tokenizer, and defaults that no setting has changed."""
    return ServedModel(tokenizer, ModelLimits(max_model_len, tokenizer.vocab_size), SamplingDefaults())
