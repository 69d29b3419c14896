"""The engine's main loop. Its caller supplies two functions: one that receives messages and one that sends events."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, assert_never

from engine.core.events import Event, finished_among, finished_event
from engine.core.outlook import Outlook, outlook
from engine.core.plan import StepPlan, StepResult
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.terms import FinishReason, Lane
from engine.launch_lead import LaunchLead
from engine.loop_messages import Abort, Add, LoopEvent, Message, QueryStats, StatsEvent, Stop
from engine.metrics import EngineMetrics
from engine.pulse import Pulse
from engine.runner.base import DoneStep, ModelRunner, PendingStep, RunnerRestarted

log = logging.getLogger("engine.loop")

# Notes which BE requests are being computed, and whether that is one suspect by itself.
Mark = Callable[[Sequence[str], bool], None]


class EngineLoop:
    """Receives messages, schedules a step, has the runner compute it, and sends the events, until it is stopped.

    `receive(timeout_s)` returns the messages that have arrived. If there are none, it waits for one for up to
    `timeout_s`, or without a limit if that is None. `send` gets the events of a step, TokenEvents before all others.
    `clock` returns monotonic time in seconds. `publish`, if given, gets the RT lane's outlook after every step. `mark`,
    if given, is called before the runner computes anything: if the process dies, its last call names the BE requests
    that may be the cause. A suspect, a request of which that was said before, is computed apart from all others.
    `pulse` shows other threads that the loop is alive. `after_step`, if given, learns after each step how long it took,
    and how long it takes by the coefficients of the cost model.

    With `ahead`, the loop schedules and launches each step while the device computes the previous one. It does so as
    late as possible without making the device wait, so that requests that arrive in the meantime are included.

        device     | step 1             | step 2             | step 3
        host       ...... schedule 2 | update 1 . schedule 3 | update 2 . schedule 4
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
        pulse: Pulse | None = None,
        mark: Mark | None = None,
        after_step: Callable[[float, float], None] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.metrics = EngineMetrics()
        self._receive = receive
        self._send = send
        self._clock = clock
        self.publish = publish
        self.pulse = pulse or Pulse()
        self._mark = mark
        self._after_step = after_step
        self._num_received = self._num_received_tokens = 0  # RT
        self._running = True
        self._ahead = ahead
        self._launched: deque[tuple[StepPlan, PendingStep]] = deque()  # steps without a result so far
        self._may_start_over = True  # after an error of the scheduler, until the next result
        self._lead = LaunchLead()

    def run(self) -> None:
        """Run until a `Stop` message arrives. Raises an error that cannot be put down to single requests."""
        timeout_s = 0.0 if self.scheduler.has_work else None
        while self._running:
            messages = self._receive(timeout_s)
            self.pulse.is_busy = True
            answers = self._handle(messages)
            while self._launched and (spare_s := self._spare_s()) > 0:
                answers += self._handle(self._receive(spare_s))
            has_plan = self._launch()
            has_result = bool(self._launched) and (len(self._launched) > self._ahead or not has_plan)
            events: Sequence[LoopEvent] = self._take_result() if has_result else ()
            if answers:
                events = [*events, *answers]
            if events:
                self.metrics.observe_events(events)
                self._send(events)
            if self.publish is not None:
                self.publish(self._outlook())
            timeout_s = 0.0
            if not (has_plan or has_result):  # a result may allow a plan that was not possible before
                timeout_s = self.scheduler.pause_s(self._clock())
            has_work = self.scheduler.has_work or bool(self._launched)
            self.pulse.is_busy = has_work and not timeout_s  # bulk may wait for a silence
        if self._mark is not None:
            self._mark((), False)

    def _launch(self) -> bool:
        """Schedule a step and launch it. Returns False if there is nothing to compute."""
        started_s = self._clock()
        try:
            plan = self.scheduler.schedule(started_s)
        except Exception:
            if not self._may_start_over:
                raise
            self._may_start_over = False
            log.exception("no step can be planned; all requests are computed again")
            self._discard_launched()
            self._take_back()
            return True
        if plan.is_empty:
            return False
        scheduled_s = self._clock()
        self.pulse.due_s = self.scheduler.busy_until_s
        try:
            suspects = self.scheduler.suspects_in_last_plan()
            if suspects:
                pending: PendingStep = DoneStep(self._compute_apart(plan, suspects))
            else:
                if self._mark is not None:
                    self._mark(self.scheduler.be_under_way(), False)
                pending = self.runner.launch(plan)
        except RunnerRestarted:
            self._take_back()
            return True
        self._launched.append((plan, pending))
        if self._ahead:
            launching_s = self._clock() - scheduled_s
            self._lead.observe(
                scheduled_s - started_s, launching_s, pending.prepared_s, is_replayed=pending.is_replayed
            )
        return True

    def _compute_apart(self, plan: StepPlan, suspects: Sequence[tuple[int, str]]) -> StepResult:
        """Compute a step in parts: first all rows but those of suspects, then each of these by itself.

        Nothing else is under way meanwhile, so that the mark tells who is the cause if the process dies.
        """
        self._launched = deque((earlier, DoneStep(step.result())) for earlier, step in self._launched)
        apart = dict(suspects)
        others = [i for i in range(len(plan.rows)) if i not in apart]
        result = StepResult([-1] * len(plan.rows), [False] * len(plan.rows))
        if self._mark is not None:
            known = set(apart.values())
            self._mark([name for name in self.scheduler.be_under_way() if name not in known], False)
        result.take_in(self.runner.execute(plan.without(apart)), others)
        self.pulse.num_steps += 1  # each part is progress: together they take longer than was predicted
        for i, request_id in suspects:
            if self._mark is not None:
                self._mark([request_id], True)
            result.take_in(self.runner.execute(plan.only(i)), [i])
            self.pulse.num_steps += 1
        if self._mark is not None:  # what ends the process from now on is not the last suspect's fault
            self._mark((), False)
        return result

    def _take_result(self) -> list[Event]:
        """Wait for the oldest launched step and return its events.

        If the runner restarted, there are none, and the requests are computed again.
        """
        plan, pending = self._launched.popleft()
        try:
            result = pending.result()
        except RunnerRestarted:
            self._take_back()
            return []
        if self._mark is not None and not self._launched:
            self._mark((), False)
        events = self.scheduler.update(plan, result, self._clock())
        self.pulse.num_steps += 1
        self._may_start_over = True
        self.metrics.observe_step(plan, self.scheduler.step_s)
        self.metrics.num_graph_failures += result.num_graph_failures
        if self._after_step is not None:
            self._after_step(self.scheduler.step_s, self.scheduler.cost_model.expected_s)
        if result.failed:
            self._count_failures(events)
            if result.lost_kv:
                self._discard_launched()
                self._take_back()
        return events

    def _take_back(self) -> None:
        """The runner has lost what it held: compute all requests again, from the tokens they have."""
        self._launched.clear()
        self.scheduler.take_back()

    def _discard_launched(self) -> None:
        """Wait for the launched steps without using their results."""
        for _, pending in self._launched:
            try:
                pending.result()
            except RunnerRestarted:
                return

    def _count_failures(self, events: Sequence[Event]) -> None:
        for event in finished_among(events):
            if event.reason is FinishReason.ERROR:
                self.metrics.num_step_failures += 1
                log.error("request %s failed, all others go on: %s", event.request_id, event.message)

    def _spare_s(self) -> float:
        """How long scheduling the next step can wait without making the device wait."""
        return self.scheduler.busy_until_s - self._clock() - self._lead.next_s

    def _outlook(self) -> Outlook:
        return outlook(self.scheduler, self._clock(), self._num_received, self._num_received_tokens)

    def _handle(self, messages: Iterable[Message]) -> list[LoopEvent]:
        """Act on messages and return their answers. An error concerns only the message that raised it."""
        events: list[LoopEvent] = []
        for message in messages:
            match message:
                case Add(request):
                    events += self._add(request)
                case Abort(request_id):
                    events += self._abort(request_id)
                case QueryStats(tag, with_memory):
                    events.append(StatsEvent(tag, self._stats(with_memory)))
                case Stop():
                    self._running = False
                case _:
                    assert_never(message)
        return events

    def _add(self, request: Request) -> list[LoopEvent]:
        """Add a request to the scheduler. If that rejects it, only this request fails."""
        if request.lane is Lane.RT:
            self._num_received += 1
            self._num_received_tokens += request.num_prompt_tokens
        try:
            self.scheduler.add(request)
        except ValueError as error:
            message = str(error)
        except Exception as error:
            log.exception("request %s cannot be added; all others go on", request.request_id)
            message = f"the engine could not take in this request ({type(error).__name__}: {error})"
        else:
            return []
        return [finished_event(request, FinishReason.ERROR, request.arrival_s, message)]

    def _abort(self, request_id: str) -> list[LoopEvent]:
        try:
            finished = self.scheduler.abort(request_id, self._clock())
        except Exception:
            log.exception("request %s cannot be aborted; all others go on", request_id)
            return []
        return [finished] if finished else []

    def _stats(self, with_memory: bool) -> dict[str, Any]:
        """A snapshot; an empty one if it cannot be made, so that whoever asked does not wait forever."""
        try:
            values = self.metrics.snapshot(self.scheduler, self.runner.grammars.counts)
            if with_memory:
                values["memory"] = self.metrics.memory(self.scheduler.kv, self._clock())
        except Exception:
            log.exception("the statistics cannot be collected")
            return {}
        return values
