"""Client of an engine's socket: many concurrent requests over one connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from engine.wire.decoding import DECODE_ERRORS, ENCODE_ERRORS, envelope_of
from engine.wire.engine_errors import EngineGone, EngineRejected, EngineSilent
from engine.wire.engine_stream import EngineStream
from engine.wire.framing import Address, FrameError, FrameReader, frame
from engine.wire.parts_answers import PartsAnswers
from engine.wire.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    EngineMessage,
    Error,
    Finished,
    Hello,
    PartsFinished,
    Pulse,
    PulseQuery,
    Rejected,
    Stats,
    StatsQuery,
    Submit,
    SubmitParts,
    Tokens,
    Welcome,
    decode_engine_message,
)
from engine.wire.request_terms import LaneName, Part, Sampling, Slo

T = TypeVar("T")


class EngineClient(asyncio.Protocol):
    """One connection, opened with `connect`. All calls must come from the event loop that opened it."""

    def __init__(self, token: str | None) -> None:
        try:
            self._hello = frame(Hello(version=PROTOCOL_VERSION, token=token))
        except ENCODE_ERRORS as error:
            raise EngineGone(
                "the engine token is not valid text; set BROS_ENGINE_TOKEN on both sides"
            ) from error
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._unsent = bytearray()
        self._ids = itertools.count()
        self._streams: dict[str, EngineStream] = {}
        self._answers = PartsAnswers()
        self._stats: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._pulses: deque[asyncio.Future[Pulse]] = deque()
        self._reason = EngineGone("the connection to the engine was lost")
        self.num_received = 0  # pieces of data so far: a sign of life
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self.welcome: Welcome

    @classmethod
    async def connect(cls, url: str, token: str | None = None, timeout_s: float = 5.0) -> EngineClient:
        """Connect and exchange greetings. Raises EngineGone with the reason, or ValueError for an invalid
        address."""
        address = Address.parse(url)
        loop = asyncio.get_running_loop()
        client = cls(token)
        try:
            async with asyncio.timeout(timeout_s):
                if address.path is not None:
                    await loop.create_unix_connection(lambda: client, address.path)
                else:
                    assert address.host is not None and address.port is not None
                    await loop.create_connection(lambda: client, address.host, address.port)
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
        owner: str = "",
    ) -> EngineStream:
        """Start a request. Raises EngineGone if the connection is closed, and EngineRejected if the request cannot be
        sent as one frame; then nothing is sent, and the connection serves all other requests."""
        request_id = str(next(self._ids))
        request = Submit(
            id=request_id,
            token_ids=token_ids,
            sampling=sampling,
            lane=lane,
            slo=slo,
            priority=priority,
            deadline_unix_s=deadline_unix_s,
            owner=owner,
        )
        self._write_request(request)
        stream = self._streams[request_id] = EngineStream(request_id, self.forget)
        return stream

    async def ask(
        self,
        token_ids: list[int],
        parts: Sequence[Part],
        *,
        lane: LaneName = "rt",
        slo: Slo | None = None,
        priority: int = 0,
        owner: str = "",
    ) -> PartsFinished | Finished:
        """Ask about prompts that generate no tokens, all of which begin with `token_ids`, and wait for the answers; a
        `Finished` says why there are none. Raises EngineGone and EngineRejected. If the caller is cancelled, so is the
        request."""
        request_id = str(next(self._ids))
        request = SubmitParts(
            id=request_id,
            token_ids=token_ids,
            parts=list(parts),
            lane=lane,
            slo=slo,
            priority=priority,
            owner=owner,
        )
        self._write_request(request)
        try:
            return await self._answers.expect(request_id)
        finally:
            if self._answers.forget(request_id):
                self._cancel(request_id)

    def ask_pulse(self) -> asyncio.Future[Pulse]:
        """Ask whether the engine makes progress. Raises EngineGone; so does the answer if the connection is lost."""
        self._write(frame(PulseQuery()))
        answer: asyncio.Future[Pulse] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may not be awaited
        self._pulses.append(answer)
        return answer

    async def pulse(self, timeout_s: float) -> Pulse:
        """Return whether the engine makes progress. Raises EngineSilent if it does not answer in time."""
        return await _in_time(self.ask_pulse(), timeout_s)

    async def stats(self, timeout_s: float = 3.0, *, with_memory: bool = False) -> dict[str, Any]:
        """Return a snapshot of the engine's counters, optionally with a map of its KV memory. Raises EngineGone."""
        self._write(frame(StatsQuery(with_memory)))
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._stats.append(answer)
        return await _in_time(answer, timeout_s)

    def forget(self, request_id: str, cancel: bool) -> None:
        """Drop the stream of a request and, if `cancel`, tell the engine to stop it."""
        if self._streams.pop(request_id, None) is not None and cancel:
            self._cancel(request_id)

    async def close(self) -> None:
        """Close the connection. The engine aborts the requests that are still running on it."""
        if self._transport is not None:
            self._flush()
            self._transport.close()
            await self.closed.wait()

    def abort(self, reason: EngineGone) -> None:
        """Close the connection at once. All its requests end with `reason`."""
        self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    def _cancel(self, request_id: str) -> None:
        """Tell the engine to stop a request. A connection that closes does that, too."""
        with contextlib.suppress(EngineGone):
            self._write(frame(Cancel(id=request_id)))

    def _write_request(self, request: Submit | SubmitParts) -> None:
        try:
            encoded = frame(request)
        except ENCODE_ERRORS as error:
            message = f"The request cannot be sent to the engine: {error}."
            raise EngineRejected("invalid_request", message) from error
        self._write(encoded)

    def _write(self, encoded: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            raise EngineGone("the connection to the engine is closed")
        # What is sent in one turn of the event loop goes out in one piece, which wakes the engine once.
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += encoded

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, bytearray()
        if unsent and self._transport is not None and not self._transport.is_closing():
            self._transport.write(unsent)

    # asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write(self._hello)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self.num_received += 1
        self._reader.add(data)
        try:
            while (body := self._reader.take()) is not None:
                self._take(body)
        except FrameError:
            self._transport.abort()

    def _take(self, body: bytes) -> None:
        """Handle one frame. One that does not decode ends the request that it concerns, if that can be told."""
        try:
            message = decode_engine_message(body)
        except DECODE_ERRORS as error:
            envelope = envelope_of(body)
            if envelope is None or envelope.id is None:
                assert self._transport is not None
                self._transport.abort()
                return
            text = f"the engine sent a message that cannot be read: {error}"
            unreadable = Finished(envelope.id, "error", prompt_tokens=0, output_tokens=0, message=text)
            if stream := self._streams.get(envelope.id):
                stream.put(unreadable)
                self.forget(envelope.id, True)
            else:
                self._answers.give(envelope.id, unreadable)
            return
        self._handle(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        gone = self._reason
        if not self._welcome.done():
            self._welcome.set_exception(gone)
        for stream in self._streams.values():
            stream.put(gone)
        self._streams.clear()
        self._answers.end(gone)
        for stats in self._stats:
            if not stats.done():
                stats.set_exception(gone)
        self._stats.clear()
        for pulse in self._pulses:
            if not pulse.done():
                pulse.set_exception(gone)
        self._pulses.clear()

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
                else:
                    self._answers.give(request_id, message)
            case PartsFinished(id=request_id):
                self._answers.give(request_id, message)
            case Stats(values=values, num_queries=num_queries):
                for _ in range(min(num_queries, len(self._stats))):
                    stats = self._stats.popleft()
                    if not stats.done():
                        stats.set_result(values)
            case Pulse():
                asked = self._pulses.popleft() if self._pulses else None
                if asked is not None and not asked.done():
                    asked.set_result(message)
            case Error(message=text):
                if not self._welcome.done():
                    self._welcome.set_exception(EngineGone(text))


async def _in_time(answer: asyncio.Future[T], timeout_s: float) -> T:
    """Wait for an answer of the engine. Raises EngineSilent if it does not come in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await answer
    except TimeoutError:
        raise EngineSilent(f"the engine has not answered for {timeout_s:g} s") from None
