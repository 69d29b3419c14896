"""OpenAI's `response` object and the items of its output, made of a chat answer, whole or in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bros_batch.openai_api.responses.response_request import ResponseBody, TextFormat

Json = dict[str, Any]
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What is known of a response before it has an answer. `created_at` is in Unix seconds.

    `lane` is "be" for a response that waits for its turn as bulk.
    """

    id: str
    body: ResponseBody
    model: str
    created_at: float
    lane: Literal["rt", "be"]
    is_stored: bool
    temperature: float | None
    top_p: float | None

    @property
    def suffix(self) -> str:
        """What the ids of the response's items end with."""
        return self.id.removeprefix("resp_")


def response_object(
    head: ResponseHead,
    status: Status,
    output: Sequence[Json] = (),
    *,
    usage: Json | None = None,
    error: Json | None = None,
    incomplete_reason: str | None = None,
    completed_at: float | None = None,
) -> Json:
    """Return the object with all fields that OpenAI's has; those without a value are null."""
    body = head.body
    extra = body.model_extra or {}
    text, reasoning = body.text, body.reasoning
    return {
        "id": head.id,
        "object": "response",
        "created_at": int(head.created_at),
        "status": status,
        "background": bool(body.background),
        "completed_at": None if completed_at is None else int(completed_at),
        "error": error,
        "incomplete_details": None if incomplete_reason is None else {"reason": incomplete_reason},
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "model": head.model,
        "output": list(output),
        "parallel_tool_calls": extra.get("parallel_tool_calls") is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": extra.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": extra.get("safety_identifier"),
        "service_tier": _service_tier(head.lane, extra.get("service_tier")),
        "store": head.is_stored,
        "temperature": head.temperature,
        "text": {
            "format": _shown_format(text.format if text else None),
            "verbosity": text.verbosity if text else None,
        },
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": body.shown_tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": head.top_p,
        "truncation": body.truncation or "disabled",
        "usage": usage,
        "user": extra.get("user"),
        "metadata": body.metadata or {},
    }


def _service_tier(lane: str, asked: Any) -> str:
    if lane == "be":
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
