"""Stored responses as the API shows them, and conversations of stored responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from bros_batch.db.responses import MAX_ANCESTORS, FoundResponse
from bros_batch.db.states import ItemStatus
from bros_batch.openai_api.responses.background_response import ended_object, failed_object
from bros_batch.openai_api.responses.input_items import normalized_items
from bros_batch.request_error import RequestError

Json = dict[str, Any]

PARAM = "previous_response_id"
# What a response may continue, in bytes of JSON. Two million tokens fit, and each request that continues it holds it in
# memory.
MAX_CONVERSATION_BYTES = 8 * 1024**2
CONTINUABLE = ("completed", "incomplete")


def current_object(found: FoundResponse) -> Json:
    """Return the response as it is now."""
    stored: Json = msgspec.json.decode(found.row.body)
    item = found.item
    if item is None:
        return stored
    match ItemStatus(item.status):
        case ItemStatus.PENDING:
            return {**stored, "status": "queued"}
        case ItemStatus.QUEUED:
            return {**stored, "status": "in_progress"}
        case ItemStatus.SUCCEEDED:
            return ended_object(stored, item.result or "{}")
        case ItemStatus.CANCELLED:
            return {**stored, "status": "cancelled"}
        case ItemStatus.FAILED | ItemStatus.EXPIRED:
            return failed_object(stored, item.error_code, item.error_message)


def is_ended(response: Json) -> bool:
    return response["status"] not in ("queued", "in_progress")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a response continues: the items so far, and the responses that they belong to, the oldest first."""

    items: Sequence[Json] = ()
    ancestor_ids: Sequence[str] = ()
    num_bytes: int = 0


def conversation_of(previous_id: str, found: Sequence[FoundResponse]) -> Conversation:
    """Return the conversation up to a response. Raises RequestError if it cannot be continued."""
    if not found or found[-1].row.id != previous_id:
        raise RequestError(f"There is no response '{previous_id}'.", PARAM, "previous_response_not_found")
    num_bytes = sum(len(each.row.input) + len(each.row.body) for each in found)
    _check_size(found[-1], num_bytes)
    if found[0].row.previous_id is not None:
        raise RequestError(
            f"The response '{previous_id}' continues '{found[0].row.previous_id}', which was deleted or has expired. "
            "Send the conversation as 'input' instead.",
            PARAM,
            "previous_response_not_found",
        )
    items: list[Json] = []
    for each in found:
        response = current_object(each)
        if response["status"] not in CONTINUABLE:
            message = f"The response '{each.row.id}' is {response['status']} and cannot be continued."
            raise RequestError(message, PARAM)
        items += msgspec.json.decode(each.row.input)
        items += normalized_items(response["output"], each.row.id)
    return Conversation(items, [each.row.id for each in found], num_bytes)


def check_continuable(previous: FoundResponse | None) -> None:
    """Raise RequestError if the conversation that `previous` ends is too long to be read."""
    if previous is not None:
        _check_size(previous, previous.row.ancestor_bytes)


def _check_size(previous: FoundResponse, num_bytes: int) -> None:
    advice = "Start a new one, with a summary of it as 'input'."
    if previous.row.num_ancestors >= MAX_ANCESTORS:
        raise RequestError(
            f"The conversation of '{previous.row.id}' has {MAX_ANCESTORS:,} responses, which is the most. {advice}",
            PARAM,
        )
    if num_bytes > MAX_CONVERSATION_BYTES:
        raise RequestError(
            f"The conversation of '{previous.row.id}' has more than {MAX_CONVERSATION_BYTES // 1024**2} MiB. {advice}",
            PARAM,
        )
