"""One client's connection to the engine's socket, from its greeting to its last frame."""

from __future__ import annotations

import asyncio
import hmac
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import assert_never, cast

import msgspec

from engine.core.events import FinishedEvent, TokenEvent
from engine.core.request import Request
from engine.core.terms import SLO, Lane
from engine.grammars.contract import Asker
from engine.lanes.admission import SocketAdmission
from engine.lanes.exchange import Exchange
from engine.lanes.grammar_gate import RETRY_S, GrammarGate, GrammarsBusy, UnusableGrammar
from engine.lanes.translation import (
    core_slo,
    embedding,
    monotonic_deadline_s,
    position_logprobs,
    prompt_logprobs,
    sampling_params,
    scores,
)
from engine.wire.decoding import DECODE_ERRORS, rejection_of
from engine.wire.framing import FrameError, FrameReader
from engine.wire.protocol import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    Cancel,
    ClientMessage,
    Error,
    Finished,
    Hello,
    Pulse,
    PulseQuery,
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

# A client that falls this far behind, which is thousands of token frames, is disconnected.
MAX_UNSENT_BYTES = 4 * 1024 * 1024
# The answers about prompts, log-probabilities and vectors, are megabytes each, and a client that reads well gets
# many of them at once. So many bytes of them may be unsent in addition.
MAX_UNSENT_ANSWER_BYTES = 64 * 1024 * 1024
# A client that has not said hello may send no more than this, and has this long to say it.
MAX_HELLO_BYTES = 4096
HELLO_TIMEOUT_S = 10.0
# Of BE; `max_waiting_rt` limits RT. Far more than rows, so that bulk over HTTP finds the next request waiting.
MAX_OPEN_BE_REQUESTS = 4096
# After this many messages of one connection, the others get their turn.
MESSAGES_PER_TURN = 128
# A connection is not read while the main loop is behind; this often it is tried again.
CONGESTED_PAUSE_S = 0.01
# BE tokens are sent together at this interval. No client waits for each of them, and reading them one by one takes as
# much processor time as serving some of the chats that run at the same time.
BE_SEND_INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True)
class ServerContext:
    """What the connections of one server share.

    `token` is the secret that clients must present, if any. `default_slo` applies to requests without an SLO of their
    own. `unflushed` holds the open connections that have something to send.
    """

    welcome: Welcome
    token: str | None
    default_slo: SLO
    admission: SocketAdmission
    exchange: Exchange
    gate: GrammarGate
    connections: set[Connection] = field(default_factory=set)
    unflushed: set[Connection] = field(default_factory=set)
    request_numbers: Iterator[int] = field(default_factory=itertools.count)


class Connection(asyncio.Protocol):
    """The engine's end of one client's connection."""

    def __init__(self, server: ServerContext) -> None:
        self._server = server
        self._exchange = server.exchange
        self._reader = FrameReader(MAX_HELLO_BYTES)
        self._is_paused = False  # no bytes are read until those that have arrived are handled
        self._transport: asyncio.Transport
        self._greeted = False
        self._num_open_be = 0
        self._open: dict[str, Request] = {}  # by the client's id, which the client may reuse after a cancel
        self._unsent = bytearray()
        self._unsent_answer_bytes = 0  # about, of what was queued since the client last had everything
        self._held: dict[str, Tokens] = {}  # BE tokens that wait to be sent together, by the client's id
        self._released_s = float("-inf")
        self._num_queries = 0  # stats queries without an answer
        self._with_memory = False  # whether one of them asks for the memory
        self._stats_task: asyncio.Task[None] | None = None
        self._compiling: set[asyncio.Task[None]] = set()  # wait for the grammars of open requests
        self._hello_timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        loop = asyncio.get_running_loop()
        text = f"no hello came within {HELLO_TIMEOUT_S:g} s"
        self._hello_timer = loop.call_later(HELLO_TIMEOUT_S, self._fail, "hello_expected", text)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.unflushed.discard(self)
        self._hello_timer.cancel()
        if self._stats_task is not None:
            self._stats_task.cancel()
        for compiling in self._compiling:
            compiling.cancel()
        for client_id in list(self._open):
            self._abort(client_id)

    def close(self) -> None:
        self._release()
        self.flush()
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
            self._server.admission.count_rejected(rejected.code)
            self._send(rejected)
            return
        self._handle(message)

    def _fail(self, code: str, message: str) -> None:
        self._send(Error(code, message))
        self.close()

    def _handle(self, message: ClientMessage) -> None:
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
                self._num_queries += 1
                self._with_memory |= with_memory
                if self._stats_task is None:
                    self._stats_task = asyncio.get_running_loop().create_task(self._answer_stats())
            case PulseQuery():
                watch = self._exchange.watch
                self._send(Pulse(watch.num_steps, watch.late_s, watch.is_stuck))
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
            self._send(self._server.welcome)

    def _submit(self, message: Submit) -> None:
        slo = core_slo(message.slo, self._server.default_slo)
        rejected = self._rejection(message, slo)
        grammar = None
        if rejected is None and message.sampling.grammar is not None:
            try:
                grammar = self._server.gate.ready(message.sampling.grammar, _asker(message))
            except UnusableGrammar as error:
                rejected = self._unusable(message.id, error)
        if rejected is not None:
            self._send(rejected)
            return
        lane = Lane(message.lane)
        now_s = monotonic()
        request = Request(
            f"s{next(self._server.request_numbers)}",
            lane,
            message.token_ids,
            sampling_params(message.sampling, grammar),
            arrival_s=now_s,
            slo=slo if lane is Lane.RT else None,
            priority=message.priority,
            deadline_s=monotonic_deadline_s(message.deadline_unix_s, now_s),
        )
        self._open[message.id] = request
        self._num_open_be += lane is Lane.BE
        self._server.admission.count_started(request)
        if message.sampling.grammar is None or grammar is not None:
            self._start(message, request)
            return
        compiling = asyncio.get_running_loop().create_task(self._start_when_compiled(message, request))
        self._compiling.add(compiling)
        compiling.add_done_callback(self._compiling.discard)

    def _start(self, message: Submit, request: Request) -> None:
        """Pass an open request to the main loop."""
        client_id, lane = message.id, request.lane

        def sink(event: TokenEvent | FinishedEvent) -> None:
            if isinstance(event, TokenEvent):
                self._on_token(client_id, lane, event)
            else:
                self._on_end(client_id, event, message.sampling)

        self._exchange.submit(request, sink)

    async def _start_when_compiled(self, message: Submit, request: Request) -> None:
        """Start an open request once its grammar is compiled, unless it was cancelled in the meantime."""
        assert message.sampling.grammar is not None
        rejected: Rejected | None = None
        try:
            grammar = await self._server.gate.compiled(message.sampling.grammar, _asker(message))
            request.sampling = sampling_params(message.sampling, grammar)
        except UnusableGrammar as error:
            rejected = self._unusable(message.id, error)
        except GrammarsBusy as busy:
            self._server.admission.count_rejected("overloaded")
            text = f"{busy}; try again in {RETRY_S:g} s"
            rejected = Rejected(message.id, "overloaded", text, retry_after_s=RETRY_S)
        if self._open.get(message.id) is not request:
            return
        if rejected is None:
            self._start(message, request)
        else:
            self._ended(message.id)
            self._send(rejected)

    def _unusable(self, client_id: str, error: UnusableGrammar) -> Rejected:
        self._server.admission.count_rejected("invalid_request")
        return Rejected(client_id, "invalid_request", str(error), param="grammar")

    def _rejection(self, message: Submit, slo: SLO) -> Rejected | None:
        admission = self._server.admission
        if message.id in self._open:
            admission.count_rejected("invalid_request")
            text = f"request id {message.id!r} is in use on this connection"
            return Rejected(message.id, "invalid_request", text)
        if message.lane == "be" and self._num_open_be >= MAX_OPEN_BE_REQUESTS:
            admission.count_rejected("overloaded")
            text = f"this connection has {self._num_open_be} open bulk requests, which is the limit; try again in 1 s"
            return Rejected(message.id, "overloaded", text, retry_after_s=1.0)
        return admission.check(message, slo)

    def _on_token(self, client_id: str, lane: Lane, event: TokenEvent) -> None:
        logprobs = position_logprobs(event)
        tokens = Tokens(client_id, [event.token_id], [logprobs] if logprobs else None)
        if lane is Lane.RT:
            self._queue(tokens)
        elif (held := self._held.get(client_id)) is None:
            self._held[client_id] = tokens
            self._server.unflushed.add(self)
        else:
            held.ids.extend(tokens.ids)
            if held.logprobs is not None and tokens.logprobs is not None:
                held.logprobs.extend(tokens.logprobs)

    def _on_end(self, client_id: str, event: FinishedEvent, sampling: Sampling) -> None:
        if (held := self._held.get(client_id)) is not None:
            self._queue(held)
        self._ended(client_id)
        num_bytes = len(self._unsent)
        self._queue(
            Finished(
                client_id,
                event.reason.value,
                prompt_tokens=event.num_prompt_tokens,
                output_tokens=event.num_output_tokens,
                cached_tokens=event.num_cached_tokens,
                message=event.message,
                scores=scores(event),
                prompt_logprobs=prompt_logprobs(event),
                embedding=embedding(event, sampling),
            )
        )
        self._unsent_answer_bytes += len(self._unsent) - num_bytes

    def _abort(self, client_id: str) -> None:
        self._exchange.abort(self._open[client_id].request_id)
        self._ended(client_id)

    def _ended(self, client_id: str) -> None:
        self._held.pop(client_id, None)
        request = self._open.pop(client_id)
        self._num_open_be -= request.lane is Lane.BE
        self._server.admission.count_ended(request)

    async def _answer_stats(self) -> None:
        """Answer the stats queries, all that have arrived with one message."""
        try:
            while self._num_queries:
                answered, with_memory = self._num_queries, self._with_memory
                self._num_queries, self._with_memory = 0, False
                values = await self._exchange.stats(with_memory=with_memory)
                rejected = self._server.admission.num_rejected
                self._send(Stats({**values, "rejected": rejected}, num_queries=answered))
        finally:
            self._stats_task = None

    def _queue(self, message: msgspec.Struct) -> None:
        """Send a message after all events of the step have arrived: one write per connection, not one per token."""
        self._unsent += frame(message)
        self._server.unflushed.add(self)

    def _send(self, message: msgspec.Struct) -> None:
        self._unsent += frame(message)
        self.flush()

    @property
    def holds_tokens(self) -> bool:
        return bool(self._held)

    def _release(self) -> None:
        """Send the held tokens with the next flush."""
        for tokens in self._held.values():
            self._unsent += frame(tokens)
        self._held.clear()

    def flush(self) -> None:
        if self._transport.is_closing():
            self._unsent.clear()
            self._held.clear()
            return
        if self._held and monotonic() - self._released_s >= BE_SEND_INTERVAL_S:
            self._released_s = monotonic()
            self._release()
        num_bytes = self._transport.get_write_buffer_size()
        if not num_bytes:
            self._unsent_answer_bytes = len(self._unsent)
        if num_bytes > MAX_UNSENT_BYTES + min(self._unsent_answer_bytes, MAX_UNSENT_ANSWER_BYTES):
            self._transport.abort()  # waiting for a client this slow would delay the others
            return
        if self._unsent:
            self._transport.write(bytes(self._unsent))
            self._unsent.clear()


def _asker(message: Submit) -> Asker:
    return Asker(message.owner, message.lane == "be")


def _bytes_of(token: str) -> bytes:
    """The token as bytes; one that came from the environment need not be valid UTF-8."""
    return token.encode(errors="surrogateescape")
