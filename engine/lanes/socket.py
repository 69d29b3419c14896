"""The RT lane: requests over a Unix or TCP socket, tokens back as they are drawn."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import assert_never, cast

import msgspec

from engine.core.request import Request
from engine.core.types import SLO, FinishedEvent, Lane, SamplingParams, TokenEvent
from engine.lanes.exchange import Exchange
from engine.wire.framing import Address, FrameError, FrameReader
from engine.wire.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    ClientMessage,
    Error,
    Finished,
    Hello,
    PositionLogprobs,
    Rejected,
    Sampling,
    Stats,
    StatsQuery,
    Submit,
    Tokens,
    Welcome,
    decode_client_message,
    frame,
)

MAX_UNSENT_BYTES = (
    4 * 1024 * 1024
)  # what a reader may fall behind before it is dropped: thousands of token frames


@dataclass(frozen=True, slots=True)
class SocketLaneConfig:
    """`refusal` says why a prompt of so many tokens can never be served, or None."""

    welcome: Welcome
    token: str | None
    default_slo: SLO
    max_waiting_rt: int
    refusal: Callable[[int], str | None]


def sampling_params(sampling: Sampling) -> SamplingParams:
    """The wire's sampling parameters in the core's words; fields and defaults are the same."""
    return SamplingParams(**msgspec.structs.asdict(sampling))


def position_logprobs(event: TokenEvent) -> PositionLogprobs | None:
    """An event's log-probabilities in the wire's words."""
    if event.logprobs is None:
        return None
    return PositionLogprobs(event.logprobs.logprob, event.logprobs.top)


class SocketLane:
    """Listens, and keeps the connections."""

    def __init__(self, config: SocketLaneConfig, exchange: Exchange) -> None:
        self.config = config
        self.exchange = exchange
        self.connection_numbers = itertools.count()
        self.connections: set[Connection] = set()
        self.unflushed: set[Connection] = set()
        self.num_open_rt = 0
        self.draining = False
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        exchange.after_delivery(self._flush)

    async def listen(self, url: str) -> None:
        """Raises OSError with what to do if the address can't be had."""
        address = Address.parse(url)
        loop = asyncio.get_running_loop()
        if address.path is None:
            if not self.config.token:
                raise OSError(
                    "an engine that listens on TCP needs a token; set BROS_ENGINE_TOKEN or use a Unix socket"
                )
            assert address.host is not None and address.port is not None
            self._server = await loop.create_server(lambda: Connection(self), address.host, address.port)
            return
        self._path = Path(address.path)
        await _remove_stale_socket(self._path)
        old_mask = os.umask(0o177)  # the socket is 0600 from its first moment
        try:
            self._server = await loop.create_unix_server(lambda: Connection(self), address.path)
        finally:
            os.umask(old_mask)

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, let open ones finish for `grace_s`, then close every connection."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        for connection in list(self.connections):
            connection.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def count_rt(self, change: int) -> None:
        """Keep track of open RT requests, for admission and for draining."""
        self.num_open_rt += change
        if self.num_open_rt:
            self._idle.clear()
        else:
            self._idle.set()

    def _flush(self) -> None:
        for connection in self.unflushed:
            connection.flush()
        self.unflushed.clear()


async def _remove_stale_socket(path: Path) -> None:
    """Take away the socket file of an engine that died; refuse if one answers there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(
                f"{path} is in the way: it is not a socket; move it or choose another --listen address"
            )
    except FileNotFoundError:
        return
    try:
        _, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        path.unlink(missing_ok=True)
        return
    writer.close()
    raise OSError(f"another engine listens on {path}; stop it or choose another --listen address")


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, lane: SocketLane) -> None:
        self._lane = lane
        self._reader = FrameReader()
        self._transport: asyncio.Transport
        self._prefix = f"s{next(lane.connection_numbers)}."
        self._greeted = False
        self._open: dict[str, Lane] = {}
        self._unsent = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._lane.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lane.connections.discard(self)
        self._lane.unflushed.discard(self)
        for task in self._tasks:
            task.cancel()
        for client_id in list(self._open):
            self._lane.exchange.abort(self._prefix + client_id)
            self._ended(client_id)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                self._handle(decode_client_message(body))
        except (FrameError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fail("malformed_frame", str(error))

    def _fail(self, code: str, message: str) -> None:
        self._send(Error(code, message))
        self.close()

    def _handle(self, message: ClientMessage) -> None:
        if self._transport.is_closing():
            return
        if not self._greeted:
            self._greet(message)
            return
        match message:
            case Submit():
                self._submit(message)
            case Cancel(id=client_id):
                if client_id in self._open:
                    self._lane.exchange.abort(self._prefix + client_id)
                    self._ended(client_id)
            case StatsQuery():
                task = asyncio.get_running_loop().create_task(self._answer_stats())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case Hello():
                self._fail("unexpected_hello", "hello was said already")
            case _:
                assert_never(message)

    def _greet(self, message: ClientMessage) -> None:
        token = self._lane.config.token
        if not isinstance(message, Hello):
            self._fail("hello_expected", "the first frame must be hello")
        elif message.version != PROTOCOL_VERSION:
            self._fail(
                "version_mismatch",
                f"this engine speaks protocol version {PROTOCOL_VERSION}, the client {message.version}; "
                "run the same release on both sides",
            )
        elif token and not hmac.compare_digest(token.encode(), (message.token or "").encode()):
            self._fail(
                "bad_token", "the engine token is missing or wrong; set BROS_ENGINE_TOKEN on both sides"
            )
        else:
            self._greeted = True
            self._send(self._lane.config.welcome)

    def _submit(self, message: Submit) -> None:
        rejected = self._rejection(message)
        if rejected is not None:
            self._send(rejected)
            return
        config = self._lane.config
        lane = Lane(message.lane)
        now_s = monotonic()
        slo = SLO(message.slo.ttft_s, message.slo.tpot_s) if message.slo else config.default_slo
        deadline_s = None if message.deadline_unix_s is None else message.deadline_unix_s - time() + now_s
        request = Request(
            self._prefix + message.id,
            lane,
            message.token_ids,
            sampling_params(message.sampling),
            arrival_s=now_s,
            slo=slo if lane is Lane.RT else None,
            priority=message.priority,
            deadline_s=deadline_s,
        )
        self._open[message.id] = lane
        if lane is Lane.RT:
            self._lane.count_rt(1)

        def sink(event: TokenEvent | FinishedEvent, client_id: str = message.id) -> None:
            self._on_event(client_id, event)

        self._lane.exchange.submit(request, sink)

    def _rejection(self, message: Submit) -> Rejected | None:
        config = self._lane.config
        if message.id in self._open:
            return Rejected(
                message.id, "invalid_request", f"request id {message.id!r} is in use on this connection"
            )
        if self._lane.draining:
            return Rejected(message.id, "draining", "the engine is shutting down", retry_after_s=5.0)
        reason = config.refusal(len(message.token_ids))
        if reason:
            code = "context_length_exceeded" if message.token_ids else "invalid_request"
            return Rejected(message.id, code, reason)
        beyond = next((t for t in message.token_ids if t >= config.welcome.vocab_size), None)
        if beyond is not None:
            text = f"token id {beyond} is outside the vocabulary of {config.welcome.vocab_size}"
            return Rejected(message.id, "invalid_request", text)
        if message.lane == "rt" and self._lane.num_open_rt >= config.max_waiting_rt:
            text = f"{self._lane.num_open_rt} real-time requests are open, which is the limit; try again soon"
            return Rejected(message.id, "overloaded", text, retry_after_s=1.0)
        return None

    def _on_event(self, client_id: str, event: TokenEvent | FinishedEvent) -> None:
        if isinstance(event, TokenEvent):
            logprobs = position_logprobs(event)
            self._queue(Tokens(client_id, [event.token_id], [logprobs] if logprobs else None))
            return
        self._ended(client_id)
        self._queue(
            Finished(
                client_id,
                event.reason.value,
                prompt_tokens=event.num_prompt_tokens,
                output_tokens=event.num_output_tokens,
                cached_tokens=event.num_cached_tokens,
                message=event.message,
            )
        )

    def _ended(self, client_id: str) -> None:
        if self._open.pop(client_id) is Lane.RT:
            self._lane.count_rt(-1)

    async def _answer_stats(self) -> None:
        self._send(Stats(await self._lane.exchange.stats()))

    def _queue(self, message: msgspec.Struct) -> None:
        """Send when the step's events are all in: one write a connection, not one a token."""
        self._unsent += frame(message)
        self._lane.unflushed.add(self)

    def _send(self, message: msgspec.Struct) -> None:
        self._unsent += frame(message)
        self.flush()

    def flush(self) -> None:
        if self._transport.is_closing():
            self._unsent.clear()
            return
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._transport.abort()  # a reader this slow is dropped; waiting for it would hold up the others
            return
        if self._unsent:
            self._transport.write(bytes(self._unsent))
            self._unsent.clear()
