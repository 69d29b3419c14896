"""Request ids, uniform errors and a last resort for exceptions, as plain ASGI middleware around every request."""

from __future__ import annotations

import logging
import re
import secrets

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bros_batch.web.audit import REJECTIONS, log_rejection
from bros_batch.web.client_disconnect import ClientGone
from bros_batch.web.errors import ApiError, internal_error
from bros_batch.web.ignored_fields import ignored_header
from bros_batch.web.rate_limits import rate_headers

logger = logging.getLogger(__name__)

GOOD_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
MAX_PLAIN_ERROR_BYTES = 1000


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
        answer = _Answer(scope, send)
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            # No id or name contains one, and PostgreSQL fails on it.
            error = ApiError(400, "The URL contains a NUL character.", code="invalid_request")
            await error.response()(scope, receive, answer.send)
            return
        try:
            await self._app(scope, receive, answer.send)
        except (ClientGone, ClientDisconnect, _HeadComplete):
            return
        except Exception:
            logger.exception("%s %s failed (%s)", scope["method"], scope["path"], request_id)
            if answer.started:
                # The response has begun. Leaving it unfinished closes the connection, which tells the client.
                return
            await internal_error().response()(scope, receive, answer.send)


class _HeadComplete(Exception):
    """Ends the work for a HEAD request: its headers have been sent, and nobody needs the body."""


class _Answer:
    """The response to one request on its way out.

    It gets the request's id. A rejection is audited, and a library's error in plain text becomes one of the API's.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._plain_error: Message | None = None
        self._plain_body = b""
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._plain_error is not None:
            self._plain_body += message.get("body", b"")[:MAX_PLAIN_ERROR_BYTES]
            if not message.get("more_body"):
                await self._send_plain_error(self._plain_error)
        elif self._scope["method"] == "HEAD":
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            if message.get("more_body"):
                raise _HeadComplete
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        headers = message.get("headers", ())
        kinds = [value for name, value in headers if name.lower() == b"content-type"]
        if message["status"] >= 400 and kinds and kinds[0].startswith(b"text/plain"):
            self._plain_error = message
            return
        self.started = True
        state = self._scope["state"]
        if message["status"] in REJECTIONS:
            log_rejection(self._scope, message["status"], state.get("error_code"))
        header = (b"x-request-id", state["request_id"].encode())
        await self._send(
            {
                **message,
                "headers": [*headers, header, *ignored_header(self._scope), *rate_headers(self._scope)],
            }
        )

    async def _send_plain_error(self, start: Message) -> None:
        self._plain_error = None
        text = self._plain_body.decode(errors="replace").strip() or "The request failed"
        error = ApiError(
            start["status"], f"{text[:1].upper()}{text[1:].rstrip('.')}.", code="invalid_request"
        )
        response = error.response()
        kept = [
            each for each in start["headers"] if each[0].lower() not in (b"content-type", b"content-length")
        ]
        await self.send({**start, "headers": [*response.raw_headers, *kept]})
        await self.send({"type": "http.response.body", "body": bytes(response.body), "more_body": False})


def _client_request_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if GOOD_ID.fullmatch(value) else None
    return None
