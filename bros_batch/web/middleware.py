"""Request ids and a last resort for exceptions, as plain ASGI middleware around every request."""

from __future__ import annotations

import logging
import re
import secrets

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bros_batch.web.client_disconnect import ClientGone
from bros_batch.web.errors import ApiError, internal_error

logger = logging.getLogger(__name__)

GOOD_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestIds:
    """Gives each request an id, which the response and the log carry: the client's own if it is well-formed.

    Exceptions end here: the client gets an error body, and only the log has the traceback.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _client_request_id(scope) or f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        header = (b"x-request-id", request_id.encode())
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            # No id or name contains one, and PostgreSQL fails on it.
            error = ApiError(400, "The URL contains a NUL character.", code="invalid_request")
            await error.response()(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except (ClientGone, ClientDisconnect):
            return
        except Exception:
            logger.exception("%s %s failed (%s)", scope["method"], scope["path"], request_id)
            if started:
                # The response has begun. Leaving it unfinished closes the connection, which tells the client.
                return
            await internal_error().response()(scope, receive, send_with_id)


def _client_request_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if GOOD_ID.fullmatch(value) else None
    return None
