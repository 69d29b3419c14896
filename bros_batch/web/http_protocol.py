"""The server's HTTP connections: uvicorn's protocol with limits, so that no client can use up memory or connections.

uvicorn limits neither the size of a request's head nor the time that a client takes. The figures below are listed in
docs/guide.md. Bodies have their own limits in `request_body`.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Collection
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from bros_batch.web.audit import log_rejection
from bros_batch.web.connection_room import address_of, make_room
from bros_batch.web.errors import ApiError

MAX_URL_BYTES = 16 * 1024
MAX_HEAD_BYTES = 32 * 1024  # the URL and all headers
MAX_HEADERS = 100
# From the opening of a connection, or from the first byte of a later request, to the end of its headers.
HEAD_S = 10.0
# A client that does not read what it asked for.
UNREAD_S = 60.0
# What a client still sends after its request was answered is dropped, so that it can read the answer before the
# connection closes. That ends at these limits.
LINGER_S = 30.0
LINGER_BYTES = 64 * 1024**2
# The parser gets pieces of this size, so that it holds at most one of them beyond the limits.
PIECE_BYTES = 16 * 1024
HEADER_OVERHEAD_BYTES = 4  # colon, space and line end

MALFORMED = ApiError(400, "The request is not valid HTTP.", code="invalid_request")
HEAD_TOO_LARGE = ApiError(
    431,
    f"The request's headers are too large: at most {MAX_HEADERS} headers with {MAX_HEAD_BYTES} bytes are allowed.",
    code="headers_too_large",
)
URL_TOO_LONG = ApiError(414, f"The URL is longer than {MAX_URL_BYTES} bytes.", code="url_too_long")
HEAD_TOO_SLOW = ApiError(
    408, f"The request's headers did not arrive within {HEAD_S:g} s.", code="request_timeout"
)


class _StopParsing(Exception):
    """Raised in a callback of the parser."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection. `max_connections` is set by `with_limits`.

    When there are too many connections, the one that has been without a request for longest is closed. Only if all of
    them have one, a new connection is rejected. One request may arrive before the last one is answered (pipelining);
    after a second, the connection closes.
    """

    max_connections = 1000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._unfinished_bytes = 0  # of a header that has not ended
        self._num_headers = 0
        self._message_complete = True
        self._dropped_bytes = 0
        self._rejection: ApiError | None = None
        self._earlier: RequestResponseCycle | None = None  # the request before the one that waits for it
        self._is_deaf = False  # what arrives from now on is dropped
        self._read_by_s = math.inf
        self._written_by_s = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self.without_request_since_s = 0.0

    # The connection ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        connections: Collection[Any] = self.connections  # all of them are of this class
        trusted = self.config.forwarded_allow_ips
        rejection = make_room(connections, address_of(transport), self.max_connections, trusted)
        super().connection_made(transport)
        self.without_request_since_s = self.loop.time()
        self._expect_read_within(HEAD_S)
        if rejection is not None:
            self._answer(rejection)
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._earlier is not None and not self._earlier.response_complete:
            # uvicorn tells only the latest request that its client is gone.
            self._earlier.disconnected = True
            self._earlier.message_event.set()
        if self._timer is not None:
            self._timer.cancel()

    @property
    def has_request(self) -> bool:
        """Whether a request is being served."""
        return self.cycle is not None and not self.cycle.response_complete

    # Time ----------------------------------------------------------------------------------------------------------

    def _expect_read_within(self, delay_s: float) -> None:
        self._read_by_s = self.loop.time() + delay_s
        self._set_timer()

    def _expect_written_within(self, delay_s: float) -> None:
        self._written_by_s = self.loop.time() + delay_s
        self._set_timer()

    def _set_timer(self) -> None:
        """Set a timer for the next limit. When a limit has moved, the timer is set again as it fires, not earlier."""
        next_s = min(self._read_by_s, self._written_by_s)
        if self._timer is not None and self._timer.when() > next_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(next_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now_s = self.loop.time()
        if now_s >= self._written_by_s:
            self.transport.abort()
        elif now_s >= self._read_by_s:
            self._read_by_s = math.inf
            if self._in_head and not self._message_complete and not self._is_deaf:
                self._reject(HEAD_TOO_SLOW)
            else:
                self._close()
        elif min(self._read_by_s, self._written_by_s) < math.inf:
            self._set_timer()

    def _close(self) -> None:
        self.transport.close()
        self._expect_written_within(UNREAD_S)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_written_within(UNREAD_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._written_by_s = math.inf

    # Requests ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._is_deaf:
            self._drop(len(data))
            return
        pieces = memoryview(data)
        for start in range(0, len(data), PIECE_BYTES):
            piece = pieces[start : start + PIECE_BYTES]
            headers_before = self._head_bytes
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade:
                return  # the request is served as if it asked for no upgrade
            except httptools.HttpParserError:
                if not self._is_deaf:
                    self._reject(self._rejection or MALFORMED)
                return
            if self._in_head and not self._message_complete:
                is_same_header = self._head_bytes == headers_before
                self._unfinished_bytes = self._unfinished_bytes + len(piece) if is_same_header else 0
                if self._head_bytes + self._unfinished_bytes > MAX_HEAD_BYTES:
                    self._reject(HEAD_TOO_LARGE)
                    return
        if self._message_complete and not self.has_request and self._read_by_s == math.inf:
            self._expect_read_within(HEAD_S)  # only line ends arrived, with which no message begins

    def on_message_begin(self) -> None:
        if self.pipeline:
            self.cycle.keep_alive = False
            self._is_deaf = True
            raise _StopParsing
        super().on_message_begin()
        self._in_head, self._message_complete = True, False
        self._head_bytes = self._unfinished_bytes = self._num_headers = 0
        self._expect_read_within(HEAD_S)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_bytes += len(url)
        if self._head_bytes > MAX_URL_BYTES:
            self._rejection = URL_TOO_LONG
            raise _StopParsing

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value) + HEADER_OVERHEAD_BYTES
        self._num_headers += 1
        if self._head_bytes > MAX_HEAD_BYTES or self._num_headers > MAX_HEADERS:
            self._rejection = HEAD_TOO_LARGE
            raise _StopParsing

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._read_by_s = math.inf
        if self.has_request:
            self._earlier = self.cycle
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle.response_complete:
            self._drop(len(body))

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._message_complete = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.without_request_since_s = self.loop.time()
        if self.transport.is_closing():
            self._expect_written_within(UNREAD_S)
        elif not self._message_complete and not self.has_request:
            self._linger()

    # Rejections ----------------------------------------------------------------------------------------------------

    def _reject(self, rejection: ApiError) -> None:
        """Answer with an error, without the application, and close the connection once the client has it.

        Answers keep the order of their requests. If an earlier request is still being served, the connection closes
        after its answer, and the client learns from that.
        """
        self._is_deaf = True
        unanswered = [
            each for each in (self._earlier, self.cycle) if each is not None and not each.response_complete
        ]
        is_of_later_request = len(unanswered) > 1 or self._in_head or self._message_complete
        if unanswered and is_of_later_request:
            unanswered[0].keep_alive = False
            self.pipeline.clear()
            self._read_by_s = math.inf
            return
        for cycle in unanswered:  # its body is the one that cannot be read
            if cycle.response_started:
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self._answer(rejection)
        self.transport.write_eof()
        self._linger()

    def _answer(self, rejection: ApiError) -> None:
        request_id = f"req_{secrets.token_hex(12)}"
        scope = {"client": self.client, "state": {"request_id": request_id}}
        log_rejection(scope, rejection.status, rejection.code)
        response = rejection.response()
        headers = [
            *self.server_state.default_headers,
            *response.raw_headers,
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[rejection.status] + lines + b"\r\n" + bytes(response.body))

    def _linger(self) -> None:
        """Drop what the client still sends, within limits."""
        self._dropped_bytes = 0
        self._expect_read_within(LINGER_S)

    def _drop(self, num_bytes: int) -> None:
        self._dropped_bytes += num_bytes
        if self._dropped_bytes > LINGER_BYTES:
            self.transport.abort()


def with_limits(max_connections: int) -> type[LimitedHttpProtocol]:
    """Return the protocol for a server with at most `max_connections` connections."""
    return type("Protocol", (LimitedHttpProtocol,), {"max_connections": max_connections})
