"""Calls the webhook for responses in the background that have ended.

The calls are signed as Standard Webhooks defines it, which is what OpenAI's clients verify. One that is not answered
with a status of success is repeated with growing pauses, for three days. So an event may come twice, with the same id.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import time

import msgspec

from bros_batch.db import response_jobs
from bros_batch.db.connections import reading, writing
from bros_batch.db.response_jobs import EndedResponse
from bros_batch.db.states import ItemStatus
from bros_batch.jobs.locks import Lock
from bros_batch.jobs.task_run import Progress, TaskRun
from bros_batch.jobs.worker import Worker
from bros_batch.settings import Settings

log = logging.getLogger("bros.notify")

TIMEOUT_S = 5.0
AT_ONCE = 20
FIRST_PAUSE_S = 5.0
MAX_PAUSE_S = 3600.0
GIVE_UP_AFTER_S = 72 * 3600.0


def notify(worker: Worker, until_s: float, lock: Lock | None = None, now_s: float | None = None) -> TaskRun:
    """Call the webhook for each response that is due, until `time.monotonic()` reaches `until_s`."""
    settings = worker.settings
    with reading(worker.database) as connection:
        due = response_jobs.due_notifications(connection, now_s or time.time(), AT_ONCE)
    for response in due:
        called_s = now_s or time.time()
        problem = _call(settings, response, called_s) if settings.webhook_url else None
        next_s = None
        if problem is not None and called_s - response.ended_at < GIVE_UP_AFTER_S:
            next_s = called_s + min(FIRST_PAUSE_S * 2**response.num_notified, MAX_PAUSE_S)
        if problem is not None:
            end = "it is given up" if next_s is None else "it will be called again"
            log.warning("the webhook for %s failed (%s); %s", response.id, problem, end)
        with writing(worker.database) as connection:
            response_jobs.set_notified(connection, response.id, next_s)
        if time.monotonic() >= until_s:
            return TaskRun(Progress.MORE)
        if lock is not None:
            lock.renew()
    return TaskRun(Progress.MORE if len(due) == AT_ONCE else Progress.DONE)


def _call(settings: Settings, response: EndedResponse, now_s: float) -> str | None:
    """Call the webhook. Returns what went wrong, or None."""
    event_id = f"evt_{hashlib.sha256(response.id.encode()).hexdigest()[:24]}"
    event = {
        "id": event_id,
        "object": "event",
        "type": f"response.{_how_it_ended(response)}",
        "created_at": int(response.ended_at),
        "data": {"id": response.id},
    }
    body = msgspec.json.encode(event)
    headers = {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now_s)),
    }
    if settings.webhook_secret:
        signed = f"{event_id}.{int(now_s)}.".encode() + body
        digest = hmac.digest(secret_bytes(settings.webhook_secret), signed, "sha256")
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    import httpx  # takes a third of a second, which most workers never need

    try:
        answer = httpx.post(settings.webhook_url, content=body, headers=headers, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{type(error).__name__}: {error}"
    return None if answer.is_success else f"status {answer.status_code}"


class _Result(msgspec.Struct):
    status: str


def _how_it_ended(response: EndedResponse) -> str:
    if response.item_status == ItemStatus.CANCELLED:
        return "cancelled"
    if response.item_status != ItemStatus.SUCCEEDED:
        return "failed"
    return msgspec.json.decode(response.result or "", type=_Result).status


def secret_bytes(secret: str) -> bytes:
    """Return the key of a secret: what follows `whsec_` is base64, anything else is the key itself."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"))
        except binascii.Error:
            pass
    return secret.encode()
