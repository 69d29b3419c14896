"""A response in the background: the request that its item is, and the response object as the item makes it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from bros_batch.openai_api.responses.encoded_response import with_members
from bros_batch.openai_api.responses.response_request import ResponseBody

Json = dict[str, Any]

# What the item of a response does not need or must not have: the conversation is part of its input.
NOT_IN_ITEM = {"input", "previous_response_id", "background", "store", "stream", "stream_options", "metadata"}
# What the stored object knows and the item's result does not.
OF_STORED_OBJECT = (
    "id",
    "created_at",
    "background",
    "previous_response_id",
    "service_tier",
    "store",
    "metadata",
)

# OpenAI's codes for the errors of a response.
INVALID_PROMPT = "invalid_prompt"
SERVER_ERROR = "server_error"
REQUEST_ERRORS = ("invalid_request", "context_length_exceeded")


def item_body(body: ResponseBody, items: Sequence[Json], response_id: str) -> str:
    """Return the JSON text of a request that needs nothing but itself: its input is the whole conversation.

    Its `request_id` is the response's id, from which the ids in the output are derived. It has a seed, so that whoever
    has read a part of its output gets the rest of the same one if the engine dies and another computes it again.
    """
    sent = body.model_dump(exclude_unset=True, by_alias=True)
    kept = {name: value for name, value in sent.items() if name not in NOT_IN_ITEM}
    if kept.get("seed") is None:
        kept["seed"] = secrets.randbelow(2**31)
    return msgspec.json.encode({**kept, "input": items, "request_id": response_id}).decode()


def ended_response(stored: Json, result: str) -> bytes:
    """Return the encoded response whose item has ended with `result`, the JSON text of its result."""
    return with_members(result, {name: stored[name] for name in OF_STORED_OBJECT})


def failed_object(stored: Json, code: str | None, message: str | None) -> Json:
    """Return the response whose item has ended with an error."""
    kind = INVALID_PROMPT if code in REQUEST_ERRORS else SERVER_ERROR
    return {**stored, "status": "failed", "error": {"code": kind, "message": message or code or "It failed."}}
