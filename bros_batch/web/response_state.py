"""Stored responses as the API shows them, and conversations of stored responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from bros_batch.db.responses import MAX_ANCESTORS, FoundResponse
from bros_batch.db.states import ItemStatus
from bros_batch.openai_api.responses.background_response import ended_response, failed_object
from bros_batch.openai_api.responses.encoded_response import decoded_response, with_members
from bros_batch.openai_api.responses.input_items import normalized_items
from bros_batch.request_error import RequestError

Json = dict[str, Any]

PARAM = "previous_response_id"
# What a response may continue, in bytes of JSON. Two million tokens fit, and each request that continues it holds it in
# memory.
MAX_CONVERSATION_BYTES = 8 * 1024**2
CONTINUABLE = ("completed", "incomplete")


def current_response(found: FoundResponse) -> bytes:
    """Return the response as it is now, encoded. One that has megabytes of log-probabilities is not decoded for it."""
    item = found.item
    if item is None:
        return found.row.body.encode()
    match ItemStatus(item.status):
        case ItemStatus.PENDING:
            return with_members(found.row.body, {"status": "queued"})
        case ItemStatus.QUEUED:
            return with_members(found.row.body, {"status": "in_progress"})
        case ItemStatus.SUCCEEDED:
            return ended_response(msgspec.json.decode(found.row.body), item.result or "{}")
        case ItemStatus.CANCELLED:
            return with_members(found.row.body, {"status": "cancelled"})
        case ItemStatus.FAILED | ItemStatus.EXPIRED:
            stored = msgspec.json.decode(found.row.body)
            return msgspec.json.encode(failed_object(stored, item.error_code, item.error_message))


def is_ended(found: FoundResponse) -> bool:
    return found.item is None or found.item.status not in (ItemStatus.PENDING, ItemStatus.QUEUED)


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
    num_bytes = sum(map(_num_bytes, found))
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
        response = decoded_response(current_response(each))
        if response["status"] not in CONTINUABLE:
            message = f"The response '{each.row.id}' is {response['status']} and cannot be continued."
            raise RequestError(message, PARAM)
        items += msgspec.json.decode(each.row.input)
        items += normalized_items(response["output"], each.row.id)
    return Conversation(items, [each.row.id for each in found], num_bytes)


def _num_bytes(found: FoundResponse) -> int:
    result = found.item.result if found.item is not None else None
    return len(found.row.input) + len(found.row.body) + len(result or "")


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
