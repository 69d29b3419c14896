"""OpenAI's `response` object and the items of its output, made of a chat answer, whole or in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bros_batch.openai_api.responses.response_request import ResponseRequest, TextFormat
from engine.wire.request_terms import Sampling

Json = dict[str, Any]
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What identifies a response. `created_at` is in Unix seconds.

    `waits` is true for a response that runs as bulk.
    """

    id: str
    model: str
    created_at: float
    waits: bool
    is_stored: bool


def response_object(head: ResponseHead, request: ResponseRequest, sampling: Sampling | None = None) -> Json:
    """Return a response without output, with all fields that OpenAI's object has; those without a value are null.

    `sampling` has the values of parameters that the request does not set.
    """
    body = request.body
    text, reasoning = body.text, body.reasoning
    return {
        "id": head.id,
        "object": "response",
        "created_at": int(head.created_at),
        "status": "in_progress",
        "background": bool(body.background),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "model": head.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": _service_tier(head.waits, request.service_tier),
        "store": head.is_stored,
        "temperature": sampling.temperature if sampling else request.temperature,
        "text": {
            "format": _shown_format(text.format if text else None),
            "verbosity": text.verbosity if text else None,
        },
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": body.shown_tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p if sampling else request.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": request.user,
        "metadata": body.metadata or {},
    }


def _service_tier(waits: bool, asked: str | None) -> str:
    if waits:
        return "flex"
    return "priority" if asked == "priority" else "default"


def _shown_format(format: TextFormat | None) -> Json:
    if format is None or format.type != "json_schema":
        return {"type": "text" if format is None else format.type}
    return {
        "type": format.type,
        "name": format.name,
        "description": format.description,
        "schema": format.schema_,
        "strict": bool(format.strict),
    }


def response_usage(chat_usage: Json) -> Json:
    """Return the usage of a response, from that of a chat."""
    prompt = chat_usage.get("prompt_tokens_details") or {}
    completion = chat_usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": chat_usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": prompt.get("cached_tokens", 0),
            "cache_write_tokens": 0,
        },
        "output_tokens": chat_usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": completion.get("reasoning_tokens", 0)},
        "total_tokens": chat_usage["total_tokens"],
    }
