"""Client of an engine's socket: many concurrent requests over one connection."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec

from engine.wire.framing import Address, FrameError, FrameReader
from engine.wire.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    EngineMessage,
    Error,
    Finished,
    Hello,
    LaneName,
    Rejected,
    Sampling,
    Slo,
    Stats,
    StatsQuery,
    Submit,
    Tokens,
    Welcome,
    decode_engine_message,
    frame,
)


class EngineGone(ConnectionError):
    """The engine cannot be reached, or the connection to it was lost."""


class EngineRejected(Exception):
    """The engine did not start the request. `code` is one of those in `protocol.Rejected`."""

    def __init__(self, code: str, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class EngineStream:
    """The output of one request: an async iterator of `Tokens` messages that ends with a `Finished`.

    The iteration raises EngineRejected or EngineGone. Use it with `async with`: leaving the block early cancels the
    request.
    """

    def __init__(self, client: EngineClient, request_id: str) -> None:
        self._client = client
        self._id = request_id
        self._messages: deque[Tokens | Finished | Rejected | None] = deque()
        self._arrived = asyncio.Event()
        self._over = False

    def put(self, message: Tokens | Finished | Rejected | None) -> None:
        """Add a message that the connection received; None means that the connection was lost."""
        self._messages.append(message)
        self._arrived.set()

    async def __aenter__(self) -> EngineStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.cancel()

    async def __aiter__(self) -> AsyncIterator[Tokens | Finished]:
        while not self._over:
            while not self._messages:
                self._arrived.clear()
                await self._arrived.wait()
            message = self._messages.popleft()
            match message:
                case Tokens():
                    yield message
                case Finished():
                    self._over = True
                    yield message
                case Rejected(code=code, message=text, retry_after_s=retry_after_s):
                    self._over = True
                    raise EngineRejected(code, text, retry_after_s)
                case None:
                    self._over = True
                    raise EngineGone("the connection to the engine was lost")

    def cancel(self) -> None:
        """Stop the request if it is still running. No further messages arrive."""
        self._client.forget(self._id, cancel=not self._over)
        self._over = True


class EngineClient(asyncio.Protocol):
    """One connection, opened with `connect`. All calls must come from the event loop that opened it."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._ids = itertools.count()
        self._streams: dict[str, EngineStream] = {}
        self._stats: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self.welcome: Welcome

    @classmethod
    async def connect(cls, url: str, token: str | None = None, timeout_s: float = 5.0) -> EngineClient:
        """Connect and exchange greetings. Raises EngineGone with the reason, or ValueError for an invalid address."""
        address = Address.parse(url)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                if address.path is not None:
                    _, client = await loop.create_unix_connection(lambda: cls(token), address.path)
                else:
                    assert address.host is not None and address.port is not None
                    _, client = await loop.create_connection(lambda: cls(token), address.host, address.port)
                client.welcome = await client._welcome
        except (OSError, TimeoutError) as error:
            reason = str(error) or f"no answer within {timeout_s:g} s"
            raise EngineGone(f"no engine answers at {url}: {reason}") from error
        return client

    def submit(
        self,
        token_ids: list[int],
        sampling: Sampling,
        *,
        lane: LaneName = "rt",
        slo: Slo | None = None,
        priority: int = 0,
        deadline_unix_s: float | None = None,
    ) -> EngineStream:
        """Start a request. Raises EngineGone if the connection is closed."""
        request_id = str(next(self._ids))
        self._send(
            Submit(
                id=request_id,
                token_ids=token_ids,
                sampling=sampling,
                lane=lane,
                slo=slo,
                priority=priority,
                deadline_unix_s=deadline_unix_s,
            )
        )
        stream = self._streams[request_id] = EngineStream(self, request_id)
        return stream

    async def stats(self, timeout_s: float = 5.0, *, with_memory: bool = False) -> dict[str, Any]:
        """Return a snapshot of the engine's counters, optionally with a map of its KV memory. Raises EngineGone."""
        self._send(StatsQuery(with_memory))
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._stats.append(answer)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise EngineGone(f"the engine did not answer within {timeout_s:g} s") from error

    def forget(self, request_id: str, *, cancel: bool) -> None:
        """Drop the stream of a request and, with `cancel`, tell the engine to stop it."""
        if self._streams.pop(request_id, None) is not None and cancel and not self.closed.is_set():
            self._send(Cancel(id=request_id))

    async def close(self) -> None:
        """Close the connection. The engine aborts the requests that are still running on it."""
        if self._transport is not None:
            self._transport.close()
            await self.closed.wait()

    def _send(self, message: msgspec.Struct) -> None:
        if self._transport is None or self._transport.is_closing():
            raise EngineGone("the connection to the engine is closed")
        self._transport.write(frame(message))

    # asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send(Hello(version=PROTOCOL_VERSION, token=self._token))

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            for body in self._reader.feed(data):
                self._handle(decode_engine_message(body))
        except (FrameError, msgspec.DecodeError):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        gone = EngineGone("the connection to the engine was lost")
        if not self._welcome.done():
            self._welcome.set_exception(gone)
        for stream in self._streams.values():
            stream.put(None)
        self._streams.clear()
        for answer in self._stats:
            if not answer.done():
                answer.set_exception(gone)
        self._stats.clear()

    def _handle(self, message: EngineMessage) -> None:
        match message:
            case Welcome():
                if not self._welcome.done():
                    self._welcome.set_result(message)
            case Tokens(id=request_id):
                if stream := self._streams.get(request_id):
                    stream.put(message)
            case Finished(id=request_id) | Rejected(id=request_id):
                if stream := self._streams.pop(request_id, None):
                    stream.put(message)
            case Stats(values=values):
                answer = self._stats.popleft() if self._stats else None
                if answer is not None and not answer.done():
                    answer.set_result(values)
            case Error(message=text):
                if not self._welcome.done():
                    self._welcome.set_exception(EngineGone(text))
