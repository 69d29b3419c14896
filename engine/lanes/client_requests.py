"""The open requests of one client on the engine's socket, from their arrival to their last message."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

import msgspec

from engine.core.events import FinishedEvent, TokenEvent
from engine.core.request import Request
from engine.core.terms import SLO, FinishReason, Lane, SamplingParams
from engine.grammars.contract import Asker
from engine.lanes.admission import SocketAdmission
from engine.lanes.exchange import Exchange, RequestSink
from engine.lanes.grammar_gate import RETRY_S, GrammarGate, GrammarsBusy, UnusableGrammar
from engine.lanes.outbox import Outbox
from engine.lanes.translation import (
    core_slo,
    embedding,
    monotonic_deadline_s,
    position_logprobs,
    prompt_logprobs,
    sampling_params,
    scores,
)
from engine.wire.protocol import Finished, PartEnd, PartsFinished, Rejected, Submit, SubmitParts, Tokens
from engine.wire.request_terms import Part, Sampling

# Of BE; `max_waiting_rt` limits RT. Far more than rows, so that bulk over HTTP finds the next request waiting.
MAX_OPEN_BE_REQUESTS = 4096


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What the requests of all clients share. `default_slo` applies to requests without an SLO of their own."""

    default_slo: SLO
    admission: SocketAdmission
    exchange: Exchange
    gate: GrammarGate
    numbers: Iterator[int] = field(default_factory=itertools.count)


class ClientRequests:
    """Starts the requests of one client, and answers them. A request of several parts is one request to the core for
    each of them."""

    def __init__(self, context: RequestContext, outbox: Outbox) -> None:
        self._context = context
        self._outbox = outbox
        # By the client's id, which the client may reuse after a cancel: those that the core computes.
        self._open: dict[str, list[Request]] = {}
        self._num_open_be = 0
        self._compiling: set[asyncio.Task[None]] = set()  # wait for the grammars of open requests

    def submit(self, message: Submit) -> None:
        """Start a request, or reject it."""
        slo = core_slo(message.slo, self._context.default_slo)
        rejected = self._rejection(message, slo)
        grammar = None
        if rejected is None and message.sampling.grammar is not None:
            try:
                grammar = self._context.gate.ready(message.sampling.grammar, _asker(message))
            except UnusableGrammar as error:
                rejected = self._unusable(message.id, error)
        if rejected is not None:
            self._outbox.send(rejected)
            return
        now_s = monotonic()
        sampling = sampling_params(message.sampling, grammar)
        deadline_s = monotonic_deadline_s(message.deadline_unix_s, now_s)
        request = self._request(message, message.token_ids, sampling, slo, now_s, deadline_s)
        self._enter(message.id, [request])
        if message.sampling.grammar is None or grammar is not None:
            self._start(message, request)
            return
        compiling = asyncio.get_running_loop().create_task(self._start_when_compiled(message, request))
        self._compiling.add(compiling)
        compiling.add_done_callback(self._compiling.discard)

    def submit_parts(self, message: SubmitParts) -> None:
        """Start a request of several parts, or reject all of it."""
        slo = core_slo(message.slo, self._context.default_slo)
        rejected = self._rejection(message, slo)
        if rejected is not None:
            self._outbox.send(rejected)
            return
        now_s, shared = monotonic(), message.token_ids
        requests = [
            self._request(message, shared + part.token_ids, _without_output(part.sampling), slo, now_s)
            for part in message.parts
        ]
        self._enter(message.id, requests)
        answer = _PartsAnswer(self, message, len(requests))
        self._context.exchange.submit_all(
            [(request, answer.sink(number)) for number, request in enumerate(requests)]
        )

    def cancel(self, client_id: str) -> None:
        """Stop a request; nothing more is sent for it. It may have ended already."""
        if client_id in self._open:
            self._abort(client_id)

    def close(self) -> None:
        """Stop all requests: the client is gone."""
        for compiling in self._compiling:
            compiling.cancel()
        for client_id in list(self._open):
            self._abort(client_id)

    def _request(
        self,
        message: Submit | SubmitParts,
        token_ids: list[int],
        sampling: SamplingParams,
        slo: SLO,
        now_s: float,
        deadline_s: float | None = None,
    ) -> Request:
        lane = Lane(message.lane)
        return Request(
            f"s{next(self._context.numbers)}",
            lane,
            token_ids,
            sampling,
            arrival_s=now_s,
            slo=slo if lane is Lane.RT else None,
            priority=message.priority,
            deadline_s=deadline_s,
        )

    def _enter(self, client_id: str, requests: list[Request]) -> None:
        self._open[client_id] = requests
        for request in requests:
            self._num_open_be += request.lane is Lane.BE
            self._context.admission.count_started(request)

    def _start(self, message: Submit, request: Request) -> None:
        """Pass an open request to the main loop."""
        client_id, lane = message.id, request.lane

        def sink(event: TokenEvent | FinishedEvent) -> None:
            if isinstance(event, TokenEvent):
                self._on_token(client_id, lane, event)
            else:
                self._on_end(client_id, event, message.sampling)

        self._context.exchange.submit(request, sink)

    async def _start_when_compiled(self, message: Submit, request: Request) -> None:
        """Start an open request once its grammar is compiled, unless it was cancelled in the meantime."""
        assert message.sampling.grammar is not None
        rejected: Rejected | None = None
        try:
            grammar = await self._context.gate.compiled(message.sampling.grammar, _asker(message))
            request.sampling = sampling_params(message.sampling, grammar)
        except UnusableGrammar as error:
            rejected = self._unusable(message.id, error)
        except GrammarsBusy as busy:
            self._context.admission.count_rejected("overloaded")
            text = f"{busy}; try again in {RETRY_S:g} s"
            rejected = Rejected(message.id, "overloaded", text, retry_after_s=RETRY_S)
        if self._open.get(message.id) != [request]:
            return
        if rejected is None:
            self._start(message, request)
        else:
            self._ended(message.id)
            self._outbox.send(rejected)

    def _unusable(self, client_id: str, error: UnusableGrammar) -> Rejected:
        self._context.admission.count_rejected("invalid_request")
        return Rejected(client_id, "invalid_request", str(error), param="grammar")

    def _rejection(self, message: Submit | SubmitParts, slo: SLO) -> Rejected | None:
        admission = self._context.admission
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
            self._outbox.queue(tokens)
        else:
            self._outbox.hold(tokens)

    def _on_end(self, client_id: str, event: FinishedEvent, sampling: Sampling) -> None:
        self._outbox.release(client_id)
        self._ended(client_id)
        self._outbox.queue_end(
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

    def end_parts(self, client_id: str, ends: Sequence[PartEnd]) -> None:
        """Answer a request of several parts, all of which have ended."""
        self._ended(client_id)
        self._outbox.queue_end(PartsFinished(client_id, list(ends)))

    def fail_parts(self, client_id: str, event: FinishedEvent) -> None:
        """End a request of several parts, because one of them has ended without an answer."""
        self._abort(client_id)
        self._outbox.queue_end(
            Finished(client_id, event.reason.value, prompt_tokens=0, output_tokens=0, message=event.message)
        )

    def _abort(self, client_id: str) -> None:
        for request in self._open[client_id]:
            self._context.exchange.abort(request.request_id)
        self._ended(client_id)

    def _ended(self, client_id: str) -> None:
        self._outbox.drop(client_id)
        for request in self._open.pop(client_id):
            self._num_open_be -= request.lane is Lane.BE
            self._context.admission.count_ended(request)


class _PartsAnswer:
    """Collects the ends of the parts of one request, and answers it when the last of them comes."""

    def __init__(self, requests: ClientRequests, message: SubmitParts, num_parts: int) -> None:
        self._requests = requests
        self._message = message
        self._ends: list[PartEnd | None] = [None] * num_parts
        self._num_open = num_parts

    def sink(self, number: int) -> RequestSink:
        """What takes the events of a part."""
        part = self._message.parts[number]

        def take(event: TokenEvent | FinishedEvent) -> None:
            assert isinstance(event, FinishedEvent), "parts generate no tokens"
            if event.reason not in (FinishReason.STOP, FinishReason.LENGTH):
                self._requests.fail_parts(self._message.id, event)
                return
            self._ends[number] = _part_end(event, part)
            self._num_open -= 1
            if not self._num_open:
                self._requests.end_parts(self._message.id, [end for end in self._ends if end is not None])

        return take


def _without_output(sampling: Sampling) -> SamplingParams:
    """The parameters of a part. Without tokens, a grammar has no meaning, and nobody waits for it."""
    if sampling.grammar is not None:
        sampling = msgspec.structs.replace(sampling, grammar=None)
    return sampling_params(sampling)


def _part_end(event: FinishedEvent, part: Part) -> PartEnd:
    return PartEnd(
        event.num_cached_tokens, scores(event), prompt_logprobs(event), embedding(event, part.sampling)
    )


def _asker(message: Submit) -> Asker:
    return Asker(message.owner, message.lane == "be")
