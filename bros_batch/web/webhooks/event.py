"""What a webhook is told: OpenAI's events, signed as Standard Webhooks defines it, which OpenAI's clients verify."""

from __future__ import annotations

import base64
import binascii
import hmac

import msgspec
from sqlalchemy import Connection

from bros_batch.db import response_jobs
from bros_batch.db.states import ItemStatus
from bros_batch.db.table_rows import Job, WebhookCall


def event_body(connection: Connection, call: WebhookCall, job: Job) -> bytes | None:
    """The event of a call; None if it is about a response that was deleted."""
    kind, about = f"batch.{call.event}", job.id
    if not job.has_file:
        response = response_jobs.ended_response(connection, job.id)
        if response is None:
            return None
        kind, about = f"response.{_how_it_ended(response)}", response.id
    event = {
        "id": call.id,
        "object": "event",
        "type": kind,
        "created_at": int(call.created_at),
        "data": {"id": about},
    }
    return msgspec.json.encode(event)


def headers_of(event_id: str, body: bytes, secret: str | None, now_s: float) -> list[tuple[str, str]]:
    """The headers of a call. Without a secret, it has no signature."""
    timestamp = str(int(now_s))
    headers = [
        ("content-type", "application/json"),
        ("user-agent", "bros-batch"),
        ("webhook-id", event_id),
        ("webhook-timestamp", timestamp),
    ]
    if secret:
        digest = hmac.digest(secret_bytes(secret), f"{event_id}.{timestamp}.".encode() + body, "sha256")
        headers.append(("webhook-signature", f"v1,{base64.b64encode(digest).decode()}"))
    return headers


def secret_bytes(secret: str) -> bytes:
    """Return the key of a secret: what follows `whsec_` is base64, anything else is the key itself."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"))
        except binascii.Error:
            pass
    return secret.encode()


class _Result(msgspec.Struct):
    status: str


def _how_it_ended(response: response_jobs.EndedResponse) -> str:
    if response.item_status == ItemStatus.CANCELLED:
        return "cancelled"
    if response.item_status != ItemStatus.SUCCEEDED:
        return "failed"
    return msgspec.json.decode(response.result or "", type=_Result).status
