"""One client's connection to the engine's socket, from its greeting to its last frame."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field
from typing import assert_never, cast

from engine.lanes.client_requests import ClientRequests, RequestContext
from engine.lanes.outbox import Outbox
from engine.wire.decoding import DECODE_ERRORS, rejection_of
from engine.wire.framing import MAX_FRAME_BYTES, FrameError, FrameReader
from engine.wire.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    ClientMessage,
    Error,
    Hello,
    Pulse,
    PulseQuery,
    Stats,
    StatsQuery,
    Submit,
    SubmitParts,
    Welcome,
    decode_client_message,
)

# A client that has not said hello may send no more than this, and has this long to say it.
MAX_HELLO_BYTES = 4096
HELLO_TIMEOUT_S = 10.0
# After this many messages of one connection, the others get their turn.
MESSAGES_PER_TURN = 128
# A connection is not read while the main loop is behind; this often it is tried again.
CONGESTED_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class ServerContext:
    """What the connections of one server share.

    `token` is the secret that clients must present, if any. `unflushed` holds what has something to send.
    """

    welcome: Welcome
    token: str | None
    requests: RequestContext
    connections: set[Connection] = field(default_factory=set)
    unflushed: set[Outbox] = field(default_factory=set)


class Connection(asyncio.Protocol):
    """The engine's end of one client's connection."""

    def __init__(self, server: ServerContext) -> None:
        self._server = server
        self._exchange = server.requests.exchange
        self._reader = FrameReader(MAX_HELLO_BYTES)
        self._is_paused = False  # no bytes are read until those that have arrived are handled
        self._transport: asyncio.Transport
        self._outbox: Outbox
        self._requests: ClientRequests
        self._greeted = False
        self._num_queries = 0  # stats queries without an answer
        self._with_memory = False  # whether one of them asks for the memory
        self._stats_task: asyncio.Task[None] | None = None
        self._hello_timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._outbox = Outbox(self._transport, self._server.unflushed)
        self._requests = ClientRequests(self._server.requests, self._outbox)
        self._server.connections.add(self)
        loop = asyncio.get_running_loop()
        text = f"no hello came within {HELLO_TIMEOUT_S:g} s"
        self._hello_timer = loop.call_later(HELLO_TIMEOUT_S, self._fail, "hello_expected", text)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.unflushed.discard(self._outbox)
        self._hello_timer.cancel()
        if self._stats_task is not None:
            self._stats_task.cancel()
        self._requests.close()

    def close(self) -> None:
        self._outbox.flush_all()
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._reader.add(data)
        if not self._is_paused:
            self._read()

    def _read(self) -> None:
        """Handle the frames that have arrived. After many of them, or while the main loop is behind, the connection
        pauses: a client that floods the engine waits, and others do not wait for it."""
        for _ in range(MESSAGES_PER_TURN):
            if self._transport.is_closing():
                return
            if self._exchange.is_congested:
                self._pause(CONGESTED_PAUSE_S)
                return
            try:
                body = self._reader.take()
            except FrameError as error:
                self._fail("malformed_frame", str(error))
                return
            if body is None:
                if self._is_paused:
                    self._is_paused = False
                    self._transport.resume_reading()
                return
            self._take(body)
        self._pause(0.0)

    def _pause(self, pause_s: float) -> None:
        if not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()
        asyncio.get_running_loop().call_later(pause_s, self._read)

    def _take(self, body: bytes) -> None:
        """Handle one frame. What is wrong with a request concerns only that request."""
        try:
            message = decode_client_message(body)
        except DECODE_ERRORS as error:
            rejected = rejection_of(body, error) if self._greeted else None
            if rejected is None:
                self._fail("malformed_frame", str(error))
                return
            self._server.requests.admission.count_rejected(rejected.code)
            self._outbox.send(rejected)
            return
        self._handle(message)

    def _fail(self, code: str, message: str) -> None:
        self._outbox.send(Error(code, message))
        self.close()

    def _handle(self, message: ClientMessage) -> None:
        if not self._greeted:
            self._greet(message)
            return
        match message:
            case Submit():
                self._requests.submit(message)
            case SubmitParts():
                self._requests.submit_parts(message)
            case Cancel(id=client_id):
                self._requests.cancel(client_id)
            case StatsQuery(with_memory=with_memory):
                self._num_queries += 1
                self._with_memory |= with_memory
                if self._stats_task is None:
                    self._stats_task = asyncio.get_running_loop().create_task(self._answer_stats())
            case PulseQuery():
                watch = self._exchange.watch
                self._outbox.send(Pulse(watch.num_steps, watch.late_s, watch.is_stuck))
            case Hello():
                self._fail("unexpected_hello", "this connection has already sent hello")
            case _:
                assert_never(message)

    def _greet(self, message: ClientMessage) -> None:
        token = self._server.token
        if not isinstance(message, Hello):
            self._fail("hello_expected", "the first frame must be hello")
        elif message.version != PROTOCOL_VERSION:
            self._fail(
                "version_mismatch",
                f"this engine speaks protocol version {PROTOCOL_VERSION}, the client {message.version}; "
                "run the same release on both sides",
            )
        elif token and not hmac.compare_digest(_bytes_of(token), _bytes_of(message.token or "")):
            self._fail(
                "bad_token", "the engine token is missing or wrong; set BROS_ENGINE_TOKEN on both sides"
            )
        else:
            self._greeted = True
            self._hello_timer.cancel()
            self._reader.max_frame_bytes = MAX_FRAME_BYTES
            self._outbox.send(self._server.welcome)

    async def _answer_stats(self) -> None:
        """Answer the stats queries, all that have arrived with one message."""
        try:
            while self._num_queries:
                answered, with_memory = self._num_queries, self._with_memory
                self._num_queries, self._with_memory = 0, False
                values = await self._exchange.stats(with_memory=with_memory)
                rejected = self._server.requests.admission.num_rejected
                self._outbox.send(Stats({**values, "rejected": rejected}, num_queries=answered))
        finally:
            self._stats_task = None


def _bytes_of(token: str) -> bytes:
    """The token as bytes; one that came from the environment need not be valid UTF-8."""
    return token.encode(errors="surrogateescape")
