"""The loop's two holes in simulation: requests come in when their time has come, events go into statistics."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.core.finish import finished_among
from engine.core.request import Request
from engine.core.terms import SLO, FinishedEvent, Lane, SamplingParams
from engine.loop import Add, LoopEvent, Message, Stop
from engine.sim.clock import VirtualClock
from engine.sim.outcomes import LaneOutcomes
from engine.sim.traces.arrival import Arrival

# Ids of prompt tokens only have to differ between requests, so that no two share a prefix by chance.
NUM_TOKEN_IDS = 1 << 20


class Stuck(Exception):
    """The engine has requests, nothing more will arrive, and it computes nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is fed. Of BE, `be_in_flight` requests are in hand at a time; RT beyond `max_open_rt` open requests is
    refused, as the server's socket does. It ends after `num_requests`, once they have all finished, or at `duration_s`,
    whatever runs then. What arrives before `warmup_s` counts for no statistics of latency or throughput."""

    be_in_flight: int
    max_open_rt: int | None = None
    num_requests: int | None = None
    duration_s: float | None = None
    warmup_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What there was at a moment, of finished requests and of those under way: output tokens, and tokens served
    (prompts and outputs; what was computed twice counts once)."""

    time_s: float
    output_tokens: dict[Lane, int]
    served_tokens: dict[Lane, int]
    num_finished: dict[Lane, int]


class Feed:
    """Requests are made when they arrive and forgotten when they finish: memory holds the open ones."""

    def __init__(
        self,
        clock: VirtualClock,
        rt: Iterator[Arrival],
        be: Iterator[Arrival],
        limits: Limits,
        default_slo: SLO,
        max_tokens: int,
    ) -> None:
        self.output_tokens: dict[str, int] = {}  # the true lengths, for the runner
        self.outcomes = {lane: LaneOutcomes() for lane in Lane}
        self.stalled_s = 0.0  # time in which there was work and the engine planned none
        self.at_start: Progress | None = None  # when the warm-up was over
        self.at_last_arrival: Progress | None = None
        self._clock = clock
        self._limits = limits
        self._default_slo = default_slo
        self._sampling = SamplingParams(max_tokens=max_tokens)
        self._streams = {Lane.RT: rt, Lane.BE: be}
        self._next = {lane: next(stream, None) for lane, stream in self._streams.items()}
        self._open: dict[str, Request] = {}
        self._num_open = dict.fromkeys(Lane, 0)
        self._num_fed = 0

    def receive(self, timeout_s: float | None) -> list[Message]:
        """What has arrived; for None, what arrives next, however long that takes."""
        if self.at_start is None and self._clock.now_s >= self._limits.warmup_s:
            self.at_start = self.progress()
        messages = self._due()
        if timeout_s is None and not messages:
            times = [next_.arrival_s for lane, next_ in self._next.items() if next_ and self._has_room(lane)]
            if times:
                before_s = self._clock.now_s
                self._clock.jump_to(min(min(times), self._limits.duration_s or float("inf")))
                self.stalled_s += self._clock.now_s - before_s if self._open else 0.0
                messages = self._due()
            elif self._open:
                raise Stuck(
                    f"at {self._clock.now_s:.3f} s the engine has {len(self._open)} requests and plans nothing; the "
                    f"oldest is {next(iter(self._open.values()))}"
                )
            else:
                messages = [Stop()]
        if self._limits.duration_s is not None and self._clock.now_s >= self._limits.duration_s:
            messages.append(Stop())
        return messages

    def send(self, events: Sequence[LoopEvent]) -> None:
        """Hear of requests that ended."""
        for event in finished_among(events):
            self._finished(event)

    def end(self) -> Progress:
        """The load is over; where things stand. A chat that still runs counts if its first token is late already: the
        slowest must not go unseen because the end came before theirs."""
        now_s = self._clock.now_s
        for request in self._open.values():
            if request.lane is Lane.RT and request.arrival_s >= self._limits.warmup_s:
                first_s = now_s if request.first_token_s is None else request.first_token_s
                self.outcomes[Lane.RT].num_counted += first_s - request.arrival_s > request.slo.ttft_s
            self.outcomes[request.lane].num_unfinished += 1
        return self.progress()

    def progress(self) -> Progress:
        """Where things stand."""
        output_tokens = {lane: s.output_tokens for lane, s in self.outcomes.items()}
        served_tokens = {lane: s.prompt_tokens + s.output_tokens for lane, s in self.outcomes.items()}
        for request in self._open.values():
            output_tokens[request.lane] += request.num_output_tokens
            served_tokens[request.lane] += request.num_computed_tokens
        num_finished = {lane: s.num_succeeded for lane, s in self.outcomes.items()}
        return Progress(self._clock.now_s, output_tokens, served_tokens, num_finished)

    # ----------------------------------------------------------------------------------------------------

    def _has_room(self, lane: Lane) -> bool:
        return lane is Lane.RT or self._num_open[Lane.BE] < self._limits.be_in_flight

    def _due(self) -> list[Message]:
        messages: list[Message] = []
        now_s = self._clock.now_s
        for lane in Lane:
            while (
                (arrival := self._next[lane]) is not None
                and arrival.arrival_s <= now_s
                and self._has_room(lane)
            ):
                messages += self._take(arrival)
        return messages

    def _take(self, arrival: Arrival) -> list[Message]:
        lane = arrival.lane
        self._num_fed += 1
        self._next[lane] = next(self._streams[lane], None)
        if self._num_fed == self._limits.num_requests:
            self._next = dict.fromkeys(Lane)
        if not any(self._next.values()):
            self.at_last_arrival = self.progress()
        statistics = self.outcomes[lane]
        statistics.num_arrived += 1
        is_rt = lane is Lane.RT
        if (
            is_rt
            and self._limits.max_open_rt is not None
            and self._num_open[lane] >= self._limits.max_open_rt
        ):
            statistics.refuse(is_counted=arrival.arrival_s >= self._limits.warmup_s)
            return []
        request = self._request(arrival)
        self._open[request.request_id] = request
        self._num_open[lane] += 1
        self.output_tokens[request.request_id] = arrival.output_tokens
        return [Add(request)]

    def _request(self, arrival: Arrival) -> Request:
        number = self._num_fed
        prompt = [number % NUM_TOKEN_IDS] * (arrival.prompt_tokens - arrival.prefix_tokens)
        if arrival.prefix is not None:
            prompt = [NUM_TOKEN_IDS + zlib.crc32(arrival.prefix.encode())] * arrival.prefix_tokens + prompt
        is_rt = arrival.lane is Lane.RT
        return Request(
            f"{arrival.lane.value}-{number}",
            arrival.lane,
            prompt,
            self._sampling,
            # BE's time starts when the engine takes it from the stream, as in `engine.lanes.pulled_item`.
            arrival_s=arrival.arrival_s if is_rt else self._clock.now_s,
            slo=(arrival.slo or self._default_slo) if is_rt else None,
            priority=arrival.priority,
            deadline_s=arrival.deadline_s,
        )

    def _finished(self, event: FinishedEvent) -> None:
        request = self._open.pop(event.request_id)
        del self.output_tokens[event.request_id]
        self._num_open[event.lane] -= 1
        self.outcomes[event.lane].finish(
            event, self._clock.now_s, is_counted=request.arrival_s >= self._limits.warmup_s
        )
