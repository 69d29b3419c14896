"""The scheduler plans steps: `schedule` packs a step, and `update` takes in its result.

A request has tokens, some of them computed; a step computes some more. New prompts, chunks of long prompts, decoding
and catching up after a preemption are all the same thing. A policy decides how a step is packed
(`engine.core.policy.contract`).

A step counts as computed as soon as it is planned, so that the next one can be planned while the device computes it:
before `update`, only the drawn tokens are unknown. What a request holds becomes free for others when the last token it
may have is planned, or when `update` finds that a token ends it. Devices work in order, so nothing is overwritten too
soon.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import count, repeat

from engine.core.batch import Batch
from engine.core.config import SchedulerConfig
from engine.core.cost_model import CostModel
from engine.core.events import Event, FinishedEvent, TokenEvent, finished_event
from engine.core.kv.cache import KVCacheManager
from engine.core.kv.check import check_kv
from engine.core.plan import StepPlan, StepResult
from engine.core.policy.contract import policy_for
from engine.core.policy.dial import Dial
from engine.core.policy.pace import Pace
from engine.core.request import UNKNOWN, Request, State
from engine.core.rt_load import RtLoad
from engine.core.terms import FinishReason, Lane, TokenLogprobs

# Makes a TokenEvent from a tuple without a Python frame per token.
_token_event = partial(tuple.__new__, TokenEvent)


class Scheduler:
    """Owns every request from `add` to its `FinishedEvent`. It reads no clock: time is an argument."""

    def __init__(
        self, config: SchedulerConfig, kv: KVCacheManager, cost_model: CostModel | None = None
    ) -> None:
        self.config = config
        self.kv = kv
        self.cost_model = cost_model or CostModel()
        self.pace = Pace(config.default_slo, config.be_share, config.max_num_batched_tokens)
        self.dial = Dial()
        self._policy = policy_for(config, kv, self.cost_model, self.pace, self.dial)
        self.backlog = self._policy.backlog
        self.allocator = self._policy.allocator
        self.rt_load = RtLoad()
        self._requests: dict[str, Request] = {}
        self._order = count()
        self._num_steps = 0
        # By lane, prompts and outputs; tokens that a preemption or a restart lost are planned again.
        self.num_planned_tokens = dict.fromkeys(Lane, 0)
        self._under_way: deque[Batch] = deque()
        self._updated_s = 0.0  # time of the last result
        # Duration of the step of the last result, from its plan or from the end of the step before, whichever is later.
        self.step_s = 0.0
        self._suspects: set[Request] = set()
        # Requests whose next token was forced while a step under way drew it: up to which position their owners have
        # received the tokens already.
        self._received: dict[Request, int] = {}
        self._gone: set[Request] = set()  # have ended, but a step under way still computes a token for them
        self.max_request_tokens = min(config.max_model_len, kv.num_slots)  # prompt and output of one request

    # Requests in and out --------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def num_requests(self, lane: Lane) -> tuple[int, int]:
        """Number of requests of the lane as (running, waiting)."""
        return self.backlog.num_rows_of(lane), self.backlog.num_waiting[lane]

    def _rejection_reason(self, request: Request) -> str | None:
        """Why a request with a prompt of this length can never be served, or None if it can."""
        num_prompt_tokens = request.num_prompt_tokens
        if num_prompt_tokens == 0:
            return "the prompt is empty; send at least one token"
        limit = self.max_request_tokens
        if num_prompt_tokens + min(1, request.sampling.max_tokens) > limit:
            return (
                f"the prompt has {num_prompt_tokens} tokens, but prompt and output together may have {limit}; "
                "shorten the prompt"
            )
        return None

    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError if its id is taken or its prompt can never be served."""
        if request.request_id in self._requests:
            raise ValueError(f"request id {request.request_id!r} is in use")
        reason = self._rejection_reason(request)
        if reason:
            raise ValueError(reason)
        if (least := min(request.token_ids)) < 0:
            raise ValueError(f"token id {least} is negative; token ids start at 0")
        request.end_tokens = min(request.end_tokens, self.max_request_tokens)
        request.order = next(self._order)
        request.sort_key = self._policy.sort_key(request)
        self._requests[request.request_id] = request
        if request.is_suspect:
            self._suspects.add(request)
        if request.lane is Lane.RT:
            self.dial.add(request)
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        self._policy.enqueue(request)
        self.rt_load.count(request)

    def abort(self, request_id: str, now_s: float) -> FinishedEvent | None:
        """End a request now. None if it has already ended."""
        request = self._requests.get(request_id)
        return self._finish(request, FinishReason.ABORT, now_s) if request else None

    def take_back(self) -> None:
        """The runner has lost its memory and the steps under way. All requests wait again; they keep the tokens that
        their owners have received."""
        self._under_way.clear()
        self.dial.forget_planned()
        self._gone.clear()
        self._received.clear()
        self.kv.take_copies_out()  # there are some if a step could not be planned to its end
        self.allocator.lose_all(self._requests.values())
        self.backlog.clear_queues()
        for request in self._requests.values():
            if request.state is not State.ENDING:
                self.backlog.remove(request)
            request.state = State.WAITING
            self._enqueue(request)

    # A step ---------------------------------------------------------------------------------------------

    @property
    def busy_until_s(self) -> float:
        """Predicted end of the steps under way; minus infinity if there are none."""
        if not self._under_way:
            return float("-inf")
        begins_s = max(self._under_way[0].scheduled_s, self._updated_s)
        return begins_s + sum(self.cost_model.predict(batch.shape) for batch in self._under_way)

    def schedule(self, now_s: float) -> StepPlan:
        """Plan the next step. An empty plan means that there is nothing to compute."""
        self._num_steps += 1
        begins_s = max(now_s, self.busy_until_s)
        batch = Batch(self._num_steps, now_s, begins_s, self.config.max_num_batched_tokens)
        self._policy.pack(batch)
        if self.kv.copies_out:
            batch.add_copies_out(self.kv.take_copies_out())
        if not batch.plan.is_empty:
            self.num_planned_tokens[Lane.BE] += batch.num_be_tokens
            self.num_planned_tokens[Lane.RT] += batch.plan.num_tokens - batch.num_be_tokens
            self._count_as_computed(batch)
            self._under_way.append(batch)
            step_s = self.cost_model.predict(batch.shape)
            chat_s = step_s if not batch.num_be_tokens else self.cost_model.predict(batch.chat_shape)
            self.dial.plan_step(chat_s, step_s, begins_s + step_s)
        return batch.plan

    def pause_s(self, now_s: float) -> float | None:
        """If the latest plan was empty: how long it takes until there can be another one although nothing happens. None
        if it takes an event."""
        resume_s = self.pace.resume_s
        return None if resume_s is None else max(0.0, resume_s - now_s)

    def suspects_in_last_plan(self) -> list[tuple[int, str]]:
        """The rows of the plan made last that are to be computed apart from all others: (index, request id)."""
        if not self._suspects:
            return []
        batch = self._under_way[-1]
        rows = [
            (i, request) for first, requests in batch.singles for i, request in enumerate(requests, first)
        ]
        return [(i, request.request_id) for i, request in rows + batch.chunks if request in self._suspects]

    def be_under_way(self) -> list[str]:
        """The ids of the BE requests in the steps under way."""
        ids: list[str] = []
        for batch in self._under_way:
            for _, requests in batch.singles:
                if requests[0].lane is Lane.BE:
                    ids += [request.request_id for request in requests]
            ids += [request.request_id for _, request in batch.chunks if request.lane is Lane.BE]
        return ids

    def _count_as_computed(self, batch: Batch) -> None:
        """The tokens of the step count as computed; those that it draws are unknown."""
        ending = batch.ending
        for first, requests in batch.singles:
            for i, request in enumerate(requests, first):
                request.num_computed_tokens += 1
                token_ids = request.token_ids
                token_ids.append(UNKNOWN)
                if len(token_ids) >= request.end_tokens:
                    ending.append((i, request))
        for i, request in batch.chunks:
            request.num_computed_tokens += batch.plan.counts[i]
            self.kv.reuse.commit(request)
            if batch.plan.samples[i]:
                self.backlog.catch_up(request)
                request.token_ids.append(UNKNOWN)
                if len(request.token_ids) >= request.end_tokens:
                    ending.append((i, request))
            elif request.num_computed_tokens >= request.end_tokens:  # it asks for no tokens
                ending.append((i, request))
            self.rt_load.count(request)
        for _, request in ending:
            self._release(request)
            request.state = State.ENDING

    def update(self, plan: StepPlan, result: StepResult, now_s: float) -> list[Event]:
        """Take in the result of the first step under way. Returns the events for the owners of its requests: first the
        tokens, then the requests that ended."""
        batch = self._under_way.popleft()
        assert plan is batch.plan, "results must come in the order of their plans"
        self.step_s = now_s - max(batch.scheduled_s, self._updated_s)
        self.cost_model.observe(batch.shape, self.step_s)
        self._updated_s = now_s
        self.dial.end_step(self.step_s, now_s)
        events: list[Event] = []
        ends: dict[int, tuple[Request, FinishReason]] = {
            i: (request, FinishReason.LENGTH) for i, request in batch.ending
        }
        for first, requests in batch.singles:
            self._take_tokens(first, requests, batch, result, events, ends)
        for i, request in batch.chunks:
            if i in result.failed:
                ends[i] = request, FinishReason.ERROR
                continue
            if request.reading is not None and i in plan.reads:
                request.reading.take(result.readings[i], plan.reads[i][1])
            if plan.samples[i]:
                if request.first_token_s is None:
                    self._count_first_token(request, now_s)
                    if request.lane is Lane.RT and request.state is State.BEHIND:
                        # It has lost tokens in the meantime, and its deadline is another one now.
                        self.backlog.prompts.push(request)
                self._take_tokens(i, [request], batch, result, events, ends)
            elif request.num_prompt_tokens == request.end_tokens and i in ends:
                self._count_first_token(request, now_s)  # its answer is complete: its TTFT is about that
        for i, (request, reason) in ends.items():
            if request.state is not State.DONE:
                events.append(self._finish(request, reason, now_s, result.failed.get(i)))
        if self._gone:
            self._gone = {request for request in self._gone if request.last_step > batch.number}
        return events

    def _count_first_token(self, request: Request, now_s: float) -> None:
        request.first_token_s = now_s
        if request.lane is Lane.RT:
            self.dial.count_first_token(request)

    def _take_tokens(
        self,
        first: int,
        requests: list[Request],
        batch: Batch,
        result: StepResult,
        events: list[Event],
        ends: dict[int, tuple[Request, FinishReason]],
    ) -> None:
        """Take in the tokens that rows [first, first + len(requests)) of the step drew, one each."""
        last = first + len(requests)
        starts, counts, sampled = batch.plan.starts, batch.plan.counts, result.sampled
        for i, request in enumerate(requests, first):
            request.token_ids[starts[i] + counts[i]] = sampled[i]
        sampled, stopped = sampled[first:last], result.stopped[first:last]
        logprobs = repeat(None) if not result.logprobs else map(result.logprobs.get, range(first, last))
        ids = [request.request_id for request in requests]
        token_events = list(map(_token_event, zip(ids, sampled, logprobs, strict=False)))
        if True in stopped:
            ends.update(
                {
                    i: (requests[i - first], FinishReason.STOP)
                    for i in range(first, last)
                    if stopped[i - first]
                }
            )
        if result.failed or self._gone or self._received:
            failed = [i for i in range(first, last) if i in result.failed]
            ends.update({i: (requests[i - first], FinishReason.ERROR) for i in failed})
            token_events = [
                event
                for i, (event, request) in enumerate(zip(token_events, requests, strict=True), first)
                if i not in result.failed
                and request.state is not State.DONE
                and not self._has_received(request, starts[i] + counts[i])
            ]
        events += token_events
        if result.forced:
            for i, request in enumerate(requests, first):
                if i in result.forced and i not in result.failed and request.state is not State.DONE:
                    forced, start = result.forced[i], starts[i] + counts[i] + 1
                    room = request.end_tokens - start
                    if len(forced) > room or (len(forced) == room and i not in ends):
                        ends[i] = request, FinishReason.LENGTH
                    if room > 0:
                        self._append_forced(request, start, forced[:room], events)

    def _has_received(self, request: Request, position: int) -> bool:
        """Whether the owner of a request has received the token at this position, which a step has just drawn."""
        end = self._received.get(request, 0)
        if position + 1 >= end:
            self._received.pop(request, None)
        return position < end

    def _append_forced(self, request: Request, start: int, forced: list[int], events: list[Event]) -> None:
        """Append tokens that a grammar forces, from position `start` on. They are computed like any others."""
        token_ids = request.token_ids
        if len(token_ids) > start:  # a step under way draws the first of them, and can draw nothing else
            self._received[request] = start + 1
            token_ids[start] = forced[0]
            token_ids.extend(forced[1:])
        else:
            token_ids.extend(forced)
        top_size = request.sampling.logprobs
        for token_id in forced:
            logprobs = None
            if top_size is not None:
                logprobs = TokenLogprobs(0.0, ((token_id, 0.0),) if top_size else ())
            events.append(TokenEvent(request.request_id, token_id, logprobs))
        if request.state is State.DECODING:
            if request.num_uncomputed_tokens > 1:
                self.backlog.fall_behind(request)
        elif request.lane is Lane.RT and request.state is not State.ENDING:
            self.backlog.prompts.push(request)  # its deadline is another one now
        self.rt_load.count(request)

    def _release(self, request: Request) -> None:
        """Free the request's slots and its row."""
        self.kv.free(request)
        self.backlog.remove(request)

    def _finish(
        self, request: Request, reason: FinishReason, now_s: float, message: str | None = None
    ) -> FinishedEvent:
        if request.state is not State.ENDING:
            self._release(request)
        request.state = State.DONE
        del self._requests[request.request_id]
        self._received.pop(request, None)
        if request.is_suspect:
            self._suspects.discard(request)
        if self._under_way and any(request.last_step == batch.number for batch in self._under_way):
            self._gone.add(request)
        self.rt_load.count_finished(request, now_s)
        if request.lane is Lane.RT:
            self.dial.finish(request)
        event = finished_event(request, reason, now_s, message)
        if event.slo_met is not None:
            self.pace.count_finished(request.has_first_token_in_time, now_s)
        return event

    def check_integrity(self) -> None:
        """Verify the invariants of KV memory, and that rows and queues agree. Raises AssertionError."""
        held = [request for request in self._requests.values() if request.state is not State.ENDING]
        check_kv(self.kv, held)
        self.backlog.check_integrity(len(held))
