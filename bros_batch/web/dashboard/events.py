"""The live stream of a page: its changed parts as server-sent events, once per second."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bros_batch.web.api.event_stream import EventStream, event
from bros_batch.web.auth import still_has_access
from bros_batch.web.dashboard.engine_word import engine_word
from bros_batch.web.dashboard.rendering import Page, engine_state, fragments
from bros_batch.web.errors import ApiError

REFRESH_S = 1.0
PATIENCE_S = 1.5  # a page says within three seconds that its data are old
LATE = "The server waits for the engine or the database."
ZLIB_LEVEL, GZIP_FORMAT = 1, 31  # a list's rows are so alike that higher levels gain little

Read = Callable[[Request], Awaitable[Page]]


def event_stream(request: Request, read: Read) -> ASGIApp:
    """The response to a request for a page's events."""
    stream = EventStream(request, changes(request, read))
    return Gzipped(stream) if "gzip" in request.headers.get("accept-encoding", "") else stream


async def changes(request: Request, read: Read) -> AsyncGenerator[bytes]:
    """Events `{"fragments": {id: html}, "problem": sentence or null}` until the server stops or the key is revoked.

    The first event has every live part, later ones only the parts that changed. An event without changes still tells
    the browser that its data are fresh. `problem` says why they cannot be read at the moment, or that this takes long.
    The generator holds all that the server knows of an open page.
    """
    sent: dict[str, str] = {}

    def changed(current: dict[str, str]) -> dict[str, str]:
        new = {name: html for name, html in current.items() if sent.get(name) != html}
        sent.update(new)
        return new

    while True:
        reading = asyncio.ensure_future(read(request))
        try:
            while not (await asyncio.wait([reading], timeout=PATIENCE_S))[0]:
                yield event({"fragments": changed(_header(request)), "problem": LATE})
        finally:
            reading.cancel()  # unless it is done
        problem = None
        current = _header(request)
        try:
            current |= fragments(await reading)
        except ApiError as error:
            problem = error.message
        yield event({"fragments": changed(current), "problem": problem})
        await asyncio.sleep(REFRESH_S)
        if request.app.state.is_stopping() or not await still_has_access(request):
            return


def _header(request: Request) -> dict[str, str]:
    return {"engine_state": engine_state(engine_word(request))}


class Gzipped:
    """A response that is compressed as one stream, of which each piece is flushed and arrives at once.

    Starlette's middleware does not compress event streams, because it would hold pieces back.
    """

    def __init__(self, response: ASGIApp) -> None:
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        compressor = zlib.compressobj(ZLIB_LEVEL, wbits=GZIP_FORMAT)

        async def send_compressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body":
                flush = zlib.Z_SYNC_FLUSH if message.get("more_body") else zlib.Z_FINISH
                body = compressor.compress(message["body"]) + compressor.flush(flush)
                message = {**message, "body": body}
            await send(message)

        await self._response(scope, receive, send_compressed)
