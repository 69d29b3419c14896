"""Around every request, in plain ASGI: an id on the reply, and an error body whatever goes wrong inside."""

from __future__ import annotations

import logging
import re
import secrets

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bros_batch.web.errors import ApiError, internal
from bros_batch.web.request_body import ClientGone

logger = logging.getLogger(__name__)

GOOD_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestIds:
    """Gives each request an id, the client's own if it sent a good one, and puts it on the reply and in the log.

    Exceptions end here: a client sees an error body, never a traceback; the log has the traceback.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _sent_id(scope) or f"req_{secrets.token_hex(12)}"
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
            # No id or name has one, and some databases fail on it.
            error = ApiError(400, "The URL holds a NUL character.", code="invalid_request")
            await error.response()(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except (ClientGone, ClientDisconnect):
            return
        except Exception:
            logger.exception("%s %s failed (%s)", scope["method"], scope["path"], request_id)
            if started:
                # The reply cannot be taken back. An unfinished one closes the connection, so the client knows.
                return
            await internal().response()(scope, receive, send_with_id)


def _sent_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if GOOD_ID.fullmatch(value) else None
    return None
