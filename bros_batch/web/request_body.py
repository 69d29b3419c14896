"""Reads request bodies: within limits of size and time, and without letting large ones use up the memory.

A body of up to SMALL_BYTES needs no share of LARGE_BODIES_BYTES. The share of a larger one grows as its bytes arrive,
and is returned once it has been parsed. Bodies that take long to parse are parsed on threads: one large body at a time,
and beside it one small one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from starlette.requests import Request

from bros_batch.request_error import RequestError
from bros_batch.web.errors import ApiError
from bros_batch.web.json_shape import JsonShape, TooManyValues
from bros_batch.web.shared_capacity import Share, SharedCapacity

SMALL_BYTES = 64 * 1024
# Large bodies take turns: each takes time of the event loop whenever some of it arrives, and with many of them at once
# everybody else's requests wait for all.
LARGE_BODIES_BYTES = 8 * 1024**2
GROWTH_BYTES = 64 * 1024
# Parsing less than this takes less time than others may wait. A text counts by its length, because it may hold a schema
# or a grammar.
INLINE_NODES = 500
INLINE_BYTES = 8 * 1024
# Without a byte for this long, a client counts as gone. A slow client that makes progress may go on.
IDLE_S = 30.0
# The same for a body that holds memory for which others may wait.
IDLE_LARGE_S = 5.0
# The time for a whole body, except for uploads of files.
BODY_S = 60.0

JSON_TYPE = re.compile(r"application/(json|[a-z0-9.-]+\+json)")

T = TypeVar("T")


def too_large(limit_bytes: int, what: str = "body") -> ApiError:
    message = f"The {what} is larger than the limit of {limit_bytes} bytes."
    return ApiError(413, message, code="too_large")


def check_declared_size(request: Request, limit_bytes: int, what: str = "body") -> int | None:
    """Return the declared size of a body, if any. Rejects one over the limit before any of it is read."""
    declared = request.headers.get("content-length", "")
    if not declared.isdecimal():
        return None
    if len(declared) > 18 or int(declared) > limit_bytes:
        raise too_large(limit_bytes, what)
    return int(declared)


async def body_pieces(
    request: Request, within_s: float | None = None, idle_s: Callable[[], float] = lambda: IDLE_S
) -> AsyncIterator[bytes]:
    """Yield a body as it arrives. Raises ApiError 408 if no byte arrives for `idle_s()`, or if all takes longer than
    `within_s`."""
    pieces = aiter(request.stream())
    end_s = math.inf if within_s is None else time.monotonic() + within_s
    while True:
        try:
            async with asyncio.timeout(min(idle_s(), end_s - time.monotonic())):
                piece = await anext(pieces, None)
        except TimeoutError:
            message = "The body arrives too slowly, or only a part of it was sent."
            raise ApiError(408, message, code="request_timeout", headers={"Connection": "close"}) from None
        if piece is None:
            return
        yield piece


async def read_body(request: Request, limit_bytes: int, within_s: float = BODY_S) -> bytes:
    """Return a whole body. Raises ApiError 413 as soon as it exceeds the limit, and 408 if it takes too long."""
    check_declared_size(request, limit_bytes)
    body = bytearray()
    async for piece in body_pieces(request, within_s):
        body += piece
        if len(body) > limit_bytes:
            raise too_large(limit_bytes)
    return bytes(body)


class JsonReader:
    """Reads JSON bodies of at most `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._memory = SharedCapacity(LARGE_BODIES_BYTES)
        self._parsing = asyncio.Lock()
        self._parsing_small = asyncio.Lock()  # which do not wait for large ones

    async def read(self, request: Request, parse: Callable[[bytes], T]) -> T:
        """Read a JSON body and return what `parse` makes of it.

        Raises ApiError 415 for a body of another type, 413 for one that is too large, 408 for one that takes too long
        to arrive, and 503 if there is no memory for it; and RequestError for one with too many values.
        """
        _check_type(request)
        check_declared_size(request, self._limit_bytes)
        async with contextlib.AsyncExitStack() as held:
            body, shape = await self._receive(request, held)
            if len(body) <= INLINE_BYTES and shape.num_nodes <= INLINE_NODES:
                return parse(bytes(body))
            async with self._parsing_small if len(body) <= SMALL_BYTES else self._parsing:
                raw = bytes(body)
                body.clear()
                return await _on_thread(lambda: parse(raw))

    async def _receive(
        self, request: Request, held: contextlib.AsyncExitStack
    ) -> tuple[bytearray, JsonShape]:
        """Receive a body. The memory of a large one stays reserved until `held` is closed."""
        body, shape = bytearray(), JsonShape()
        share: Share | None = None

        def idle_s() -> float:
            return IDLE_S if share is None else IDLE_LARGE_S

        async for piece in body_pieces(request, BODY_S, idle_s):
            size = len(body) + len(piece)
            if size > self._limit_bytes:
                raise too_large(self._limit_bytes)
            if size > SMALL_BYTES:
                if share is None:
                    address = request.client.host if request.client else None
                    share = await held.enter_async_context(self._memory.share(address))
                if size > share.units:
                    await share.grow(max(GROWTH_BYTES, size - share.units))
            body += piece
            try:
                shape.feed(piece)
            except TooManyValues as error:
                raise RequestError(f"The body has {error}.") from None
        return body, shape


async def _on_thread(parse: Callable[[], T]) -> T:
    """Run `parse` on a thread, and then rest for as long as that took.

    The parser lets no other thread run meanwhile, so without a pause between two bodies the event loop would hardly
    run.
    """
    start_s = time.monotonic()
    try:
        return await asyncio.to_thread(parse)
    finally:
        await asyncio.sleep(time.monotonic() - start_s)


def _check_type(request: Request) -> None:
    """Reject a body that says it is not JSON. One that says nothing passes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and not JSON_TYPE.fullmatch(kind):
        message = f"Send the body as application/json, not as {kind[:100]}."
        raise ApiError(415, message, code="unsupported_media_type")
