"""Server-sent events in OpenAI's format: `data: {...}` lines, then `[DONE]`, or an error object after a failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from bros_batch.request_error import RequestError
from bros_batch.web.app_state import app_state
from bros_batch.web.client_disconnect import ClientGone, while_connected
from bros_batch.web.errors import ApiError, api_error, internal_error

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
COMMENT = b": waiting\n\n"
HEADERS_AFTER_S = 1.0  # the engine rejects within milliseconds
# Others run after so many events, should they all be there already, as when a client or this process was slow.
EVENTS_IN_A_ROW = 8
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

    A request that is rejected at once gets its own status. After HEADERS_AFTER_S without an event, the headers are
    sent, so that the client knows that its request is being served; a later error is an event. While nothing else is
    sent, a comment is, every `stream_comment_s` seconds: clients skip it, and no proxy takes the connection for dead.
    `events` is closed when the client disconnects. `end` is sent after the last of them.
    """

    def __init__(self, request: Request, events: AsyncIterator[bytes], end: bytes = DONE) -> None:
        self._request = request
        self._end = end
        self._events = events
        self._comment_s = app_state(request).settings.stream_comment_s
        self._sending = asyncio.Lock()
        self._started = False
        self._num_sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(self._request, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        events = self._events
        waiting = asyncio.create_task(self._send_comments(send))
        try:
            try:
                async for data in events:
                    await self._send(send, data)
                    if self._num_sent % EVENTS_IN_A_ROW == 0:
                        await asyncio.sleep(0)
                last = self._end
            except (asyncio.CancelledError, ClientGone):
                raise
            except (ApiError, RequestError) as error:
                if not self._started:
                    raise
                last = event(api_error(error).body)
            except Exception:
                if not self._started:
                    raise
                logger.exception("a stream failed")
                last = event(internal_error().body)
            await self._send(send, last, more=False)
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await events.aclose()  # type: ignore[attr-defined]

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        async with self._sending:
            self._num_sent += 1
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _send_comments(self, send: Send) -> None:
        await asyncio.sleep(HEADERS_AFTER_S)
        if not self._num_sent:
            await self._send(send, b"")
        while self._comment_s:
            seen = self._num_sent
            await asyncio.sleep(self._comment_s)
            if self._num_sent == seen:
                await self._send(send, COMMENT)
