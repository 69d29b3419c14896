"""What to compute next. Each step: RT first, then BE decode tokens, then BE prompt chunks, under a token budget.

A request has tokens, some of them computed; a step computes some more. New prompts, chunks of long ones, decoding and
catching up after a truncation are all that same thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from engine.core.kv_cache import KVCacheManager
from engine.core.plan import RowStart, StepPlan, StepResult
from engine.core.request import Request
from engine.core.types import Event, FinishedEvent, FinishReason, Lane, TokenEvent, TokenLogprobs
from engine.core.waiting import WaitingQueue


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of a step. `reserved_rt_rows` rows are never given to BE, so that a full house makes no chat wait."""

    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    reserved_rt_rows: int

    def __post_init__(self) -> None:
        if not 0 <= self.reserved_rt_rows < self.max_num_seqs:
            raise ValueError(
                f"reserved_rt_rows ({self.reserved_rt_rows}) must leave BE at least one of the {self.max_num_seqs} rows"
            )


class Scheduler:
    """Owns every request from `add` until its `FinishedEvent`. Reads no clock: time is an argument."""

    def __init__(self, config: SchedulerConfig, kv: KVCacheManager) -> None:
        self.config = config
        self.kv = kv
        self._requests: dict[str, Request] = {}
        self._waiting = {lane: WaitingQueue() for lane in Lane}
        self._running: dict[Lane, dict[str, Request]] = {lane: {} for lane in Lane}
        self._by_row: list[Request | None] = [None] * config.max_num_seqs
        self._free_rows = list(range(config.max_num_seqs - 1, -1, -1))
        self._order = count()
        self._step = 0
        self.num_preemptions = 0
        self.num_truncated_tokens = 0

    # Requests in and out --------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def num_requests(self, lane: Lane) -> tuple[int, int]:
        """(running, waiting)."""
        return len(self._running[lane]), len(self._waiting[lane])

    def refusal(self, num_prompt_tokens: int) -> str | None:
        """Why a prompt of this length can never be served here, or None."""
        if num_prompt_tokens == 0:
            return "the prompt is empty; send at least one token"
        limit = min(self.config.max_model_len, self.kv.num_slots)
        if num_prompt_tokens >= limit:
            return (
                f"the prompt has {num_prompt_tokens} tokens, but prompt and output together may have {limit}; "
                "shorten the prompt"
            )
        return None

    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError if its id is taken or its prompt can never be served."""
        if request.request_id in self._requests:
            raise ValueError(f"request id {request.request_id!r} is in use")
        reason = self.refusal(request.num_prompt_tokens)
        if reason:
            raise ValueError(reason)
        self._requests[request.request_id] = request
        request.order = next(self._order)
        self._waiting[request.lane].push(request)

    def abort(self, request_id: str, now_s: float) -> FinishedEvent | None:
        """End a request now; None if it has ended already."""
        request = self._requests.get(request_id)
        return self._finish(request, FinishReason.ABORT, now_s) if request else None

    # A step ---------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> StepPlan:
        """Choose the next step's tokens and give them slots. An empty plan means there is nothing to compute."""
        self._step += 1
        plan = StepPlan(rows=[], starts=[], counts=[], samples=[], token_ids=[], slots=[])
        for request in self._running[Lane.RT].values():
            self._place(request, plan)
        self._admit(Lane.RT, plan, now_s)
        behind: list[Request] = []
        for request in self._running[Lane.BE].values():
            if len(request.token_ids) - request.num_computed_tokens > 1:
                behind.append(request)
            else:
                self._place(request, plan)
        for request in behind:
            self._place(request, plan)
        self._admit(Lane.BE, plan, now_s)
        return plan

    def _place(self, request: Request, plan: StepPlan) -> bool:
        """Add as many of the request's uncomputed tokens as budget and memory allow. False if that is none."""
        start = request.num_computed_tokens
        budget = self.config.max_num_batched_tokens - len(plan.token_ids)
        wanted = min(len(request.token_ids) - start, budget)
        if wanted <= 0:
            return False
        slots = self.kv.extend(request, wanted)
        while slots is None:
            if not self._make_room(request):
                wanted = min(wanted, self.kv.room_tokens(request))
                slots = self.kv.extend(request, wanted) if wanted else []
                break
            slots = self.kv.extend(request, wanted)
        if not slots:
            return False
        assert request.row is not None
        request.last_step = self._step
        end = start + wanted
        plan.rows.append(request.row)
        plan.starts.append(start)
        plan.counts.append(wanted)
        plan.samples.append(end == len(request.token_ids))
        if wanted == 1:
            plan.token_ids.append(request.token_ids[start])
        else:
            plan.token_ids.extend(request.token_ids[start:end])
        plan.slots.extend(slots)
        return True

    def _admit(self, lane: Lane, plan: StepPlan, now_s: float) -> None:
        while len(plan.token_ids) < self.config.max_num_batched_tokens:
            request = self._waiting[lane].peek()
            if request is None or not self._has_memory_for(request) or not self._give_row(request):
                return
            assert request.row is not None
            self._waiting[lane].pop()
            self._running[lane][request.request_id] = request
            if request.first_scheduled_s is None:
                request.first_scheduled_s = now_s
            plan.row_starts.append(
                RowStart(
                    row=request.row,
                    request_id=request.request_id,
                    token_ids=request.token_ids.copy(),
                    num_prompt_tokens=request.num_prompt_tokens,
                    slots=self.kv.slots(request),
                    sampling=request.sampling,
                )
            )
            self._place(request, plan)

    def _has_memory_for(self, request: Request) -> bool:
        """RT makes its own room. BE is admitted where its known tokens fit above a watermark of 1/64 of memory, so
        that the ones already running can grow; alone, it needs no watermark."""
        if request.lane is Lane.RT:
            return True
        alone = not self._running[Lane.BE] and not self._running[Lane.RT]
        watermark = 0 if alone else self.kv.num_blocks // 64
        return self.kv.room_tokens(request) >= request.num_tokens + watermark * self.kv.block_size

    def _give_row(self, request: Request) -> bool:
        rt = request.lane is Lane.RT
        if rt and not self._free_rows:
            victim = self._youngest(Lane.BE)
            if victim is not None:
                self._displace(victim)
        if len(self._free_rows) <= (0 if rt else self.config.reserved_rt_rows):
            return False
        request.row = self._free_rows.pop()
        self._by_row[request.row] = request
        return True

    def _make_room(self, request: Request) -> bool:
        """Truncate somebody younger by a block. RT takes from BE first; nobody in this step's plan loses anything."""
        victim = self._youngest(Lane.BE, holding_kv=True, than=request)
        if victim is None and request.lane is Lane.RT:
            victim = self._youngest(Lane.RT, holding_kv=True, than=request)
        if victim is None:
            return False
        if (
            victim.num_computed_tokens >= victim.num_tokens - 1
        ):  # else it is behind already: the same preemption
            self.num_preemptions += 1
            victim.num_preemptions += 1
        self.num_truncated_tokens += self.kv.truncate(victim, victim.extents[-1].start)
        return True

    def _youngest(
        self, lane: Lane, *, holding_kv: bool = False, than: Request | None = None
    ) -> Request | None:
        """The latest admitted running request of the lane that this step has not planned. With `than` of the same
        lane, only one admitted after it: so the oldest always gets through."""
        for request in reversed(self._running[lane].values()):
            if request is than:
                return None
            if request.last_step != self._step and (request.extents or not holding_kv):
                return request
        return None

    def _displace(self, victim: Request) -> None:
        """Take a running request's row and KV; it waits again and is served before newer ones."""
        self.num_preemptions += 1
        victim.num_preemptions += 1
        self.num_truncated_tokens += self.kv.truncate(victim, 0)
        self._release_row(victim)
        del self._running[victim.lane][victim.request_id]
        self._waiting[victim.lane].push(victim)

    def _release_row(self, request: Request) -> None:
        if request.row is not None:
            self._by_row[request.row] = None
            self._free_rows.append(request.row)
            request.row = None

    # Results --------------------------------------------------------------------------------------------

    def update(self, plan: StepPlan, result: StepResult, now_s: float) -> list[Event]:
        """Take in what a step computed; returns what its requests' owners should hear."""
        events: list[Event] = []
        for i, row in enumerate(plan.rows):
            request = self._by_row[row]
            assert request is not None, f"row {row} was planned but nobody holds it"
            request.num_computed_tokens = plan.starts[i] + plan.counts[i]
            if i in result.failed:
                events.append(self._finish(request, FinishReason.ERROR, now_s, result.failed[i]))
            elif plan.samples[i]:
                self._append(request, result.sampled[i], result.logprobs.get(i), events, now_s)
                reason = self._finish_reason(request, result.stopped[i])
                if reason:
                    events.append(self._finish(request, reason, now_s))
        return events

    @staticmethod
    def _append(
        request: Request, token_id: int, logprobs: TokenLogprobs | None, events: list[Event], now_s: float
    ) -> None:
        request.token_ids.append(token_id)
        if request.first_token_s is None:
            request.first_token_s = now_s
        events.append(TokenEvent(request.request_id, token_id, logprobs))

    def _finish_reason(self, request: Request, stopped: bool) -> FinishReason | None:
        if stopped:
            return FinishReason.STOP
        limit = min(self.config.max_model_len, self.kv.num_slots)
        if request.num_output_tokens >= request.sampling.max_tokens or request.num_tokens >= limit:
            return FinishReason.LENGTH
        return None

    def _finish(
        self, request: Request, reason: FinishReason, now_s: float, message: str | None = None
    ) -> FinishedEvent:
        self.kv.free(request)
        if request.row is None:
            self._waiting[request.lane].discard(request)
        else:
            self._release_row(request)
            del self._running[request.lane][request.request_id]
        del self._requests[request.request_id]
        first_s = request.first_token_s
        num_later = request.num_output_tokens - 1
        return FinishedEvent(
            request_id=request.request_id,
            lane=request.lane,
            reason=reason,
            num_prompt_tokens=request.num_prompt_tokens,
            num_output_tokens=request.num_output_tokens,
            num_cached_tokens=request.num_cached_tokens,
            e2e_s=now_s - request.arrival_s,
            queue_s=None
            if request.first_scheduled_s is None
            else request.first_scheduled_s - request.arrival_s,
            ttft_s=None if first_s is None else first_s - request.arrival_s,
            tpot_s=(now_s - first_s) / num_later if first_s is not None and num_later > 0 else None,
            message=message,
        )

    def check_integrity(self) -> None:
        """Verify the KV memory's invariants and that rows and queues agree. Raises AssertionError."""
        self.kv.check_integrity(self._requests.values())
        held = {row for row, request in enumerate(self._by_row) if request is not None}
        assert held.isdisjoint(self._free_rows) and len(held) + len(self._free_rows) == len(self._by_row)
        running = sum(len(r) for r in self._running.values())
        assert len(held) == running
        assert running + sum(len(queue) for queue in self._waiting.values()) == len(self._requests)
