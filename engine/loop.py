"""The engine's main loop, with two holes: where requests come from, and where events go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, assert_never

from engine.core.overload import Outlook, outlook
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.types import Event, FinishedEvent, FinishReason, Lane
from engine.metrics import EngineMetrics
from engine.runner.base import ModelRunner


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


class EngineLoop:
    """`receive(wait)` gives the messages that came in; with `wait` it blocks until there is at least one.
    `send` takes the events of a step. `clock` gives seconds, monotonic. `publish`, where there is one, takes the RT
    lane's outlook after every step."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        receive: Callable[[bool], Iterable[Message]],
        send: Callable[[list[LoopEvent]], None],
        clock: Callable[[], float],
        publish: Callable[[Outlook], None] | None = None,
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

    def run(self) -> None:
        """Serve until a `Stop` message."""
        idle = not self.scheduler.has_work
        while self._running:
            events = self._take_in(self._receive(idle))
            self.metrics.observe_events(events)
            plan = self.scheduler.schedule(self._clock())
            if not plan.is_empty:
                started_s = self._clock()
                result = self.runner.execute(plan)
                now_s = self._clock()
                heard = self.scheduler.update(plan, result, now_s)
                self.metrics.observe_step(plan, now_s - started_s)
                self.metrics.observe_events(heard)
                events += heard
            if events:
                self._send(events)
            if self.publish is not None:
                self.publish(self._outlook())
            idle = plan.is_empty

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
            return [
                FinishedEvent(
                    request.request_id,
                    request.lane,
                    FinishReason.ERROR,
                    num_prompt_tokens=request.num_prompt_tokens,
                    num_output_tokens=0,
                    num_cached_tokens=0,
                    e2e_s=0.0,
                    message=str(error),
                )
            ]
        return []
