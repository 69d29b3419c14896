"""Server-sent events as OpenAI streams them: `data: {...}` lines, an error object if it fails, `[DONE]` if not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from bros_batch.web.errors import ApiError, internal
from bros_batch.web.request_body import ClientGone, while_connected

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def event(data: object) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


class EventStream:
    """An ASGI response that sends what `events` yields as it comes. The first item is awaited before the headers go
    out, so that a refusal can still be answered with its own status; closes `events` when the client goes away."""

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
                async for chunk in events:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                last = DONE
            except ApiError as error:
                last = event(error.body)
            except (asyncio.CancelledError, ClientGone):
                raise
            except Exception:
                logger.exception("a stream failed")
                last = event(internal().body)
            await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            await events.aclose()  # type: ignore[attr-defined]
