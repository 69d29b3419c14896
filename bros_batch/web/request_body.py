"""Reading a request's body, bounded; and stopping work for a client that went away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from bros_batch.web.errors import ApiError

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before it was answered; nobody reads the answer."""


def too_large(limit_bytes: int, what: str = "body") -> ApiError:
    message = f"The {what} is larger than the limit of {limit_bytes} bytes."
    return ApiError(413, message, code="too_large")


def check_declared_size(request: Request, limit_bytes: int, what: str = "body") -> None:
    """Refuse a body by what it says of itself, before any of it is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large(limit_bytes, what)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body. ApiError 413 as soon as it is over the limit."""
    check_declared_size(request, limit_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """`work`'s result; it is cancelled, and ClientGone raised, when the client goes away first.

    The body must have been read: the next thing the server has to say of this request is that it is gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
