"""Reads request bodies up to a size limit."""

from __future__ import annotations

from starlette.requests import Request

from bros_batch.web.errors import ApiError


def too_large(limit_bytes: int, what: str = "body") -> ApiError:
    message = f"The {what} is larger than the limit of {limit_bytes} bytes."
    return ApiError(413, message, code="too_large")


def check_declared_size(request: Request, limit_bytes: int, what: str = "body") -> None:
    """Reject a body whose Content-Length exceeds the limit, before any of it is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large(limit_bytes, what)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Read the whole body. Raises ApiError 413 as soon as it exceeds the limit."""
    check_declared_size(request, limit_bytes)
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        pieces.append(piece)
    return b"".join(pieces)
