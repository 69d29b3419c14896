"""Feeds a load to the engine loop of a simulation, and records the outcome of each request."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.core.events import FinishedEvent, finished_among
from engine.core.request import Request
from engine.core.terms import SLO, Lane, SamplingParams
from engine.loop_messages import Add, LoopEvent, Message, Stop
from engine.sim.clock import VirtualClock
from engine.sim.outcomes import LaneOutcomes
from engine.sim.traces.arrival import Arrival

# Prompt tokens only have to differ between requests, so that no two share a prefix by chance.
NUM_TOKEN_IDS = 1 << 20


class Stuck(Exception):
    """The engine has requests but computes nothing, and no further requests will arrive."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a load is fed.

    At most `be_in_flight` BE requests are in the engine at a time. RT requests are rejected while `max_open_rt` of them
    are open, as the server does. The load ends when `num_requests` have finished, or at `duration_s` even if some are
    running. Requests that arrive before `warmup_s` do not count for latency and throughput.
    """

    be_in_flight: int
    max_open_rt: int | None = None
    num_requests: int | None = None
    duration_s: float | None = None
    warmup_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Totals at one moment, over finished and unfinished requests.

    `served_tokens` counts prompt and output tokens; those computed twice count once.
    """

    time_s: float
    output_tokens: dict[Lane, int]
    served_tokens: dict[Lane, int]
    num_finished: dict[Lane, int]


class Feed:
    """Creates requests when they arrive and drops them when they finish, so that only open ones take memory.

    Its `receive` and `send` are those of the `EngineLoop`.
    """

    def __init__(
        self,
        clock: VirtualClock,
        rt: Iterator[Arrival],
        be: Iterator[Arrival],
        limits: Limits,
        default_slo: SLO,
        max_tokens: int,
    ) -> None:
        self.output_tokens: dict[str, int] = {}  # true output length of each open request, for the runner
        self.outcomes = {lane: LaneOutcomes() for lane in Lane}
        self.stalled_s = 0.0  # time during which the engine had work but planned none
        self.at_start: Progress | None = None  # at the end of the warm-up
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
        """Return what has arrived. If nothing has, advance the clock to the next arrival, by at most `timeout_s`."""
        if self.at_start is None and self._clock.now_s >= self._limits.warmup_s:
            self.at_start = self.progress()
        messages = self._arrived()
        if timeout_s != 0.0 and not messages:
            times = [next_.arrival_s for lane, next_ in self._next.items() if next_ and self._has_room(lane)]
            if timeout_s is not None:
                times.append(self._clock.now_s + timeout_s)
            if times:
                before_s = self._clock.now_s
                self._clock.jump_to(min(min(times), self._limits.duration_s or float("inf")))
                if self._open and timeout_s is None:  # otherwise the engine rests on purpose
                    self.stalled_s += self._clock.now_s - before_s
                messages = self._arrived()
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
        """Record the requests that have finished."""
        for event in finished_among(events):
            self._finished(event)

    def end(self) -> Progress:
        """Record the unfinished requests and return the final progress.

        An unfinished chat counts for attainment if its first token is already late. Otherwise the slowest chats would
        not count, merely because the simulation ended before they did.
        """
        now_s = self._clock.now_s
        for request in self._open.values():
            is_late = False
            if request.lane is Lane.RT and request.arrival_s >= self._limits.warmup_s:
                first_s = now_s if request.first_token_s is None else request.first_token_s
                is_late = first_s - request.arrival_s > request.slo.ttft_s
            self.outcomes[request.lane].record_unfinished(is_late=is_late)
        return self.progress()

    def progress(self) -> Progress:
        """Return the totals so far."""
        output_tokens = {lane: each.output_tokens for lane, each in self.outcomes.items()}
        served_tokens = {
            lane: each.prompt_tokens + each.output_tokens for lane, each in self.outcomes.items()
        }
        for request in self._open.values():
            output_tokens[request.lane] += request.num_output_tokens
            served_tokens[request.lane] += request.num_computed_tokens
        num_finished = {lane: each.num_succeeded for lane, each in self.outcomes.items()}
        return Progress(self._clock.now_s, output_tokens, served_tokens, num_finished)

    # ----------------------------------------------------------------------------------------------------

    def _has_room(self, lane: Lane) -> bool:
        return lane is Lane.RT or self._num_open[Lane.BE] < self._limits.be_in_flight

    def _arrived(self) -> list[Message]:
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
        outcomes = self.outcomes[lane]
        outcomes.num_arrived += 1
        is_rt = lane is Lane.RT
        if (
            is_rt
            and self._limits.max_open_rt is not None
            and self._num_open[lane] >= self._limits.max_open_rt
        ):
            outcomes.record_rejected(is_counted=arrival.arrival_s >= self._limits.warmup_s)
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
            # A BE request arrives when the engine takes it from the stream, as in `engine.lanes.pulled_item`.
            arrival_s=arrival.arrival_s if is_rt else self._clock.now_s,
            slo=(arrival.slo or self._default_slo) if is_rt else None,
            priority=arrival.priority,
            deadline_s=arrival.deadline_s,
        )

    def _finished(self, event: FinishedEvent) -> None:
        request = self._open.pop(event.request_id)
        del self.output_tokens[event.request_id]
        self._num_open[event.lane] -= 1
        self.outcomes[event.lane].record_finished(
            event, self._clock.now_s, is_counted=request.arrival_s >= self._limits.warmup_s
        )
