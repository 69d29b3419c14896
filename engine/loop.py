"""The engine's main loop, with two holes: where requests come from, and where events go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from engine.core.finish import finished_event
from engine.core.outlook import Outlook, outlook
from engine.core.plan import StepPlan
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.terms import Event, FinishReason, Lane
from engine.metrics import EngineMetrics
from engine.runner.base import ModelRunner, PendingStep, RunnerRestarted


@dataclass(frozen=True, slots=True)
class Add:
    """Start a request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    """End a request early; no event follows if it has ended already."""

    request_id: str


@dataclass(frozen=True, slots=True)
class QueryStats:
    """Ask for a snapshot, answered by a `StatsEvent` with the same tag. `with_memory` adds a picture of KV memory."""

    tag: str
    with_memory: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave the loop after this step."""


Message = Add | Abort | QueryStats | Stop


@dataclass(frozen=True, slots=True)
class StatsEvent:
    """A snapshot of counters and gauges; plain names to numbers, strings and lists."""

    tag: str
    values: dict[str, Any]


LoopEvent = Event | StatsEvent


# A step that is decided on ahead is launched so much sooner than the one before it is expected to end: twice what
# deciding and launching have taken lately, and a little for the surprises of a busy host.
LEAD_FACTOR, LEAD_LEAST_S = 2.0, 0.001
LEAD_MEMORY = 0.1  # share of the newest step in the mean


class EngineLoop:
    """`receive(timeout_s)` gives the messages that came in: those that are there for 0, else it blocks until there is
    at least one, for `timeout_s` at most (None: for as long as it takes). `send` takes the events of a step, tokens
    before all others. `clock` gives seconds, monotonic. `publish`, where there is one, takes the RT lane's outlook
    after every step.

    `ahead`: a step is decided on and launched while the device computes the one before, as late as that may be, so
    that it never waits for decisions, and requests that come meanwhile are in.

        device     | step 1          | step 2          | step 3
        host       ... decide 2 | take in 1 . decide 3 | take in 2 . decide 4
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        receive: Callable[[float | None], Iterable[Message]],
        send: Callable[[Sequence[LoopEvent]], None],
        clock: Callable[[], float],
        publish: Callable[[Outlook], None] | None = None,
        *,
        ahead: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.metrics = EngineMetrics()
        self._receive = receive
        self._send = send
        self._clock = clock
        self.publish = publish
        self._num_received = self._num_received_tokens = 0  # RT
        self._running = True
        self._ahead = ahead
        self._under_way: deque[tuple[StepPlan, PendingStep]] = deque()
        self._lead_s = 0.0  # mean time to decide on a step and launch it

    def run(self) -> None:
        """Serve until a `Stop` message."""
        idle = not self.scheduler.has_work
        while self._running:
            answers = self._take_in(self._receive(None if idle else 0.0))
            while self._under_way and (spare_s := self._spare_s()) > 0:
                answers += self._take_in(self._receive(spare_s))
            has_plan = self._launch()
            has_result = bool(self._under_way) and (len(self._under_way) > self._ahead or not has_plan)
            events: Sequence[LoopEvent] = self._take_result() if has_result else ()
            if answers:
                events = [*events, *answers]
            if events:
                self.metrics.observe_events(events)
                self._send(events)
            if self.publish is not None:
                self.publish(self._outlook())
            idle = not (has_plan or has_result)  # a result may have made a plan possible

    def _launch(self) -> bool:
        """Decides on a step and launches it. False if there is nothing to compute."""
        started_s = self._clock()
        plan = self.scheduler.schedule(started_s)
        if plan.is_empty:
            return False
        self._under_way.append((plan, self.runner.launch(plan)))
        if self._ahead:
            self._lead_s += LEAD_MEMORY * (self._clock() - started_s - self._lead_s)
        return True

    def _take_result(self) -> list[Event]:
        """Waits for the first step under way; returns its events. Where the runner lost it, there are none, and all
        requests are computed again."""
        plan, pending = self._under_way.popleft()
        try:
            result = pending.result()
        except RunnerRestarted:
            self._under_way.clear()
            self.scheduler.take_back()
            return []
        events = self.scheduler.update(plan, result, self._clock())
        self.metrics.observe_step(plan, self.scheduler.step_s)
        return events

    def _spare_s(self) -> float:
        """How long the decision on the next step can wait without the device waiting for it."""
        return self.scheduler.busy_until_s - self._clock() - LEAD_FACTOR * self._lead_s - LEAD_LEAST_S

    def _outlook(self) -> Outlook:
        return outlook(self.scheduler, self._clock(), self._num_received, self._num_received_tokens)

    def _take_in(self, messages: Iterable[Message]) -> list[LoopEvent]:
        events: list[LoopEvent] = []
        for message in messages:
            match message:
                case Add(request):
                    events += self._add(request)
                case Abort(request_id):
                    finished = self.scheduler.abort(request_id, self._clock())
                    events += [finished] if finished else []
                case QueryStats(tag, with_memory):
                    values = self.metrics.snapshot(self.scheduler)
                    if with_memory:
                        values["memory"] = self.metrics.memory(self.scheduler.kv, self._clock())
                    events.append(StatsEvent(tag, values))
                case Stop():
                    self._running = False
                case _:
                    assert_never(message)
        return events

    def _add(self, request: Request) -> list[LoopEvent]:
        """A request the scheduler refuses fails alone."""
        if request.lane is Lane.RT:
            self._num_received += 1
            self._num_received_tokens += request.num_prompt_tokens
        try:
            self.scheduler.add(request)
        except ValueError as error:
            return [finished_event(request, FinishReason.ERROR, request.arrival_s, str(error))]
        return []
