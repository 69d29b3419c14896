"""One client of the RT lane, from its hello to its last frame."""

from __future__ import annotations

import asyncio
import hmac
import math
from time import monotonic
from typing import TYPE_CHECKING, assert_never, cast

import msgspec

from engine.core.request import Request
from engine.core.terms import SLO, FinishedEvent, Lane, TokenEvent
from engine.lanes.admission import monotonic_deadline_s
from engine.lanes.translation import position_logprobs, sampling_params
from engine.wire.framing import FrameError, FrameReader
from engine.wire.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    ClientMessage,
    Error,
    Finished,
    Hello,
    Rejected,
    Stats,
    StatsQuery,
    Submit,
    Tokens,
    decode_client_message,
    frame,
)

if TYPE_CHECKING:
    from engine.lanes.socket_lane import SocketLane

# What a reader may fall behind before it is dropped: thousands of token frames.
MAX_UNSENT_BYTES = 4 * 1024 * 1024
# Bulk's tokens are sent together, those of so many seconds. Nobody waits for each, and to read them one by one takes as
# much of the processor as some of the chats beside them.
BULK_INTERVAL_S = 0.2


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, lane: SocketLane) -> None:
        self._lane = lane
        self._reader = FrameReader()
        self._transport: asyncio.Transport
        self._greeted = False
        self._open: dict[str, Request] = {}  # by the client's id, which may be in use again after a cancel
        self._unsent = bytearray()
        self._held: dict[str, Tokens] = {}  # bulk's, by the client's id
        self._released_s = float("-inf")
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
            self._abort(client_id)

    def close(self) -> None:
        self._release()
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
                    self._abort(client_id)
            case StatsQuery(with_memory=with_memory):
                task = asyncio.get_running_loop().create_task(self._answer_stats(with_memory))
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
        slo = SLO(message.slo.ttft_s, message.slo.tpot_s) if message.slo else self._lane.config.default_slo
        rejected = self._rejection(message, slo)
        if rejected is not None:
            self._lane.count_refused(rejected.code)
            self._send(rejected)
            return
        lane = Lane(message.lane)
        now_s = monotonic()
        request = Request(
            f"s{next(self._lane.request_numbers)}",
            lane,
            message.token_ids,
            sampling_params(message.sampling),
            arrival_s=now_s,
            slo=slo if lane is Lane.RT else None,
            priority=message.priority,
            deadline_s=monotonic_deadline_s(message.deadline_unix_s, now_s),
        )
        self._open[message.id] = request
        if lane is Lane.RT:
            self._lane.count_rt(1)

        def sink(event: TokenEvent | FinishedEvent, client_id: str = message.id) -> None:
            if isinstance(event, TokenEvent):
                self._on_token(client_id, lane, event)
            else:
                self._on_end(client_id, event)

        self._lane.exchange.submit(request, sink)

    def _rejection(self, message: Submit, slo: SLO) -> Rejected | None:
        config = self._lane.config
        if message.id in self._open:
            return Rejected(
                message.id, "invalid_request", f"request id {message.id!r} is in use on this connection"
            )
        if self._lane.draining:
            return Rejected(message.id, "draining", "the engine is shutting down", retry_after_s=5.0)
        refused = config.admission.refusal(message.token_ids)
        if refused:
            return Rejected(message.id, *refused)
        if message.lane != "rt":
            return None
        if self._lane.num_open_rt >= config.max_waiting_rt:
            text = f"{self._lane.num_open_rt} real-time requests are open, which is the limit; try again soon"
            return Rejected(message.id, "overloaded", text, retry_after_s=1.0)
        excess_s = self._lane.exchange.excess_s(len(message.token_ids), slo, config.max_ttft_factor)
        if excess_s > 0:
            retry_after_s = float(max(1, math.ceil(excess_s)))
            text = (
                "the engine has more real-time requests than it can answer in time; "
                f"try again in {retry_after_s:.0f} s"
            )
            return Rejected(message.id, "overloaded", text, retry_after_s)
        return None

    def _on_token(self, client_id: str, lane: Lane, event: TokenEvent) -> None:
        logprobs = position_logprobs(event)
        tokens = Tokens(client_id, [event.token_id], [logprobs] if logprobs else None)
        if lane is Lane.RT:
            self._queue(tokens)
        elif (held := self._held.get(client_id)) is None:
            self._held[client_id] = tokens
            self._lane.unflushed.add(self)
        else:
            held.ids.extend(tokens.ids)
            if held.logprobs is not None and tokens.logprobs is not None:
                held.logprobs.extend(tokens.logprobs)

    def _on_end(self, client_id: str, event: FinishedEvent) -> None:
        if (held := self._held.get(client_id)) is not None:
            self._queue(held)
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

    def _abort(self, client_id: str) -> None:
        self._lane.exchange.abort(self._open[client_id].request_id)
        self._ended(client_id)

    def _ended(self, client_id: str) -> None:
        self._held.pop(client_id, None)
        if self._open.pop(client_id).lane is Lane.RT:
            self._lane.count_rt(-1)

    async def _answer_stats(self, with_memory: bool) -> None:
        values = await self._lane.exchange.stats(with_memory=with_memory)
        self._send(Stats({**values, "refused": self._lane.num_refused}))

    def _queue(self, message: msgspec.Struct) -> None:
        """Send when the step's events are all in: one write a connection, not one a token."""
        self._unsent += frame(message)
        self._lane.unflushed.add(self)

    def _send(self, message: msgspec.Struct) -> None:
        self._unsent += frame(message)
        self.flush()

    @property
    def holds_tokens(self) -> bool:
        return bool(self._held)

    def _release(self) -> None:
        """What is held goes with the next flush."""
        for tokens in self._held.values():
            self._unsent += frame(tokens)
        self._held.clear()

    def flush(self) -> None:
        if self._transport.is_closing():
            self._unsent.clear()
            self._held.clear()
            return
        if self._held and monotonic() - self._released_s >= BULK_INTERVAL_S:
            self._released_s = monotonic()
            self._release()
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._transport.abort()  # a reader this slow is dropped; waiting for it would hold up the others
            return
        if self._unsent:
            self._transport.write(bytes(self._unsent))
            self._unsent.clear()
