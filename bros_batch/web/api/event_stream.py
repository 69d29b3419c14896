"""Server-sent events in OpenAI's format: `data: {...}` lines, then `[DONE]`, or an error object after a failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from bros_batch.web.client_disconnect import ClientGone, while_connected
from bros_batch.web.errors import ApiError, internal_error

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def event(data: object) -> bytes:
    """Return one event with `data` as JSON."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


class EventStream:
    """An ASGI response that sends each event as `events` yields it.

    The headers are sent only after the first event, so that a rejected request still gets its own status. `events` is
    closed when the client disconnects.
    """

    def __init__(self, request: Request, events: AsyncIterator[bytes]) -> None:
        self._request = request
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(self._request, self._send(send))

    async def _send(self, send: Send) -> None:
        events = self._events
        try:
            first = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                last = DONE
            except ApiError as error:
                last = event(error.body)
            except (asyncio.CancelledError, ClientGone):
                raise
            except Exception:
                logger.exception("a stream failed")
                last = event(internal_error().body)
            await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            await events.aclose()  # type: ignore[attr-defined]
