"""What to compute next: `schedule` packs a step, `update` takes in what it computed.

A request has tokens, some of them computed; a step computes some more. New prompts, chunks of long ones, decoding and
catching up after a truncation are all that same thing. How a step is packed is the policy's: `engine.core.packer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import count, repeat

from engine.core.baselines import BaselinePacker
from engine.core.batch import Batch
from engine.core.cost_model import CostModel
from engine.core.finish import finished_event
from engine.core.kv_cache import KVCacheManager
from engine.core.kv_check import check_kv
from engine.core.memory import Memory
from engine.core.overload import RtBacklog
from engine.core.pace import Pace
from engine.core.packer import BrosPacker
from engine.core.plan import StepPlan, StepResult
from engine.core.request import Request
from engine.core.running import Running
from engine.core.types import SLO, Event, FinishedEvent, FinishReason, Lane, Policy, TokenEvent

# A TokenEvent of a tuple, without a Python frame for each.
_token_event = partial(tuple.__new__, TokenEvent)

DEFAULT_SLO = SLO(ttft_s=0.5, tpot_s=0.1)


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of a step, and what each lane is promised.

    `reserved_rt_rows` rows are never given to BE, so that a full house makes no chat wait. `be_share` of all tokens is
    BE's even when RT could use them all. A BE request preempted `max_preemptions` times is spared while there are
    others. An RT prompt with time to spare may give its place to BE `max_swaps` times.
    """

    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    reserved_rt_rows: int
    policy: Policy = Policy.BROS
    default_slo: SLO = DEFAULT_SLO
    be_share: float = 0.05
    max_preemptions: int = 8
    max_swaps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.reserved_rt_rows < self.max_num_seqs:
            raise ValueError(
                f"reserved_rt_rows ({self.reserved_rt_rows}) must leave BE at least one of the {self.max_num_seqs} rows"
            )
        if not 0 <= self.be_share <= 1:
            raise ValueError(f"be_share ({self.be_share:g}) is a share of all tokens, between 0 and 1")


class Scheduler:
    """Owns every request from `add` until its `FinishedEvent`. Reads no clock: time is an argument."""

    def __init__(
        self, config: SchedulerConfig, kv: KVCacheManager, cost_model: CostModel | None = None
    ) -> None:
        self.config = config
        self.kv = kv
        self.cost_model = cost_model or CostModel()
        self.pace = Pace(config.default_slo, config.be_share, config.max_num_batched_tokens)
        is_bros = config.policy is Policy.BROS
        min_be_rows = max(1, int(config.be_share * config.max_num_seqs)) if is_bros else 0
        self.running = Running(config.max_num_seqs, config.reserved_rt_rows if is_bros else 0, min_be_rows)
        self.memory = Memory(
            kv, self.running, self.cost_model, config.max_preemptions, config.policy is not Policy.FCFS
        )
        self._packer: BrosPacker | BaselinePacker = (
            BrosPacker(self.running, self.memory, kv, self.pace, self.cost_model, config.max_swaps)
            if is_bros
            else BaselinePacker(config.policy, self.running, self.memory, kv)
        )
        self.rt_backlog = RtBacklog()
        self._requests: dict[str, Request] = {}
        self._order = count()
        self._batch = Batch(0, 0.0, 0)  # the one being computed
        self._max_tokens = min(config.max_model_len, kv.num_slots)  # of one request

    # Requests in and out --------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def num_requests(self, lane: Lane) -> tuple[int, int]:
        """(running, waiting)."""
        return self.running.num_rows_of(lane), self.running.num_waiting[lane]

    def refusal(self, num_prompt_tokens: int) -> str | None:
        """Why a prompt of this length can never be served here, or None."""
        if num_prompt_tokens == 0:
            return "the prompt is empty; send at least one token"
        limit = self._max_tokens
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
        request.end_tokens = min(request.end_tokens, self._max_tokens)
        request.order = next(self._order)
        request.sort_key = self._packer.sort_key(request)
        self.running.num_waiting[request.lane] += 1
        self._packer.enqueue(request)
        self.rt_backlog.count(request)

    def abort(self, request_id: str, now_s: float) -> FinishedEvent | None:
        """End a request now; None if it has ended already."""
        request = self._requests.get(request_id)
        return self._finish(request, FinishReason.ABORT, now_s) if request else None

    # A step ---------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> StepPlan:
        """Choose the next step's tokens and give them slots. An empty plan means there is nothing to compute."""
        batch = self._batch = Batch(self._batch.number + 1, now_s, self.config.max_num_batched_tokens)
        self._packer.pack(batch)
        batch.plan.copies_out.extend(self.kv.copies_out)
        batch.shape.copied += sum(len(copy.host_slots) for copy in self.kv.copies_out)
        self.kv.copies_out.clear()
        return batch.plan

    def update(self, plan: StepPlan, result: StepResult, now_s: float) -> list[Event]:
        """Take in what a step computed; returns what its requests' owners should hear: tokens first, then ends."""
        batch = self._batch
        assert plan is batch.plan, "results come in the order of their plans"
        self.cost_model.observe(batch.shape, now_s - batch.now_s)
        events: list[Event] = []
        ended: list[tuple[Request, FinishReason, str | None]] = []
        for first, requests in batch.singles:
            self._take_tokens(first, requests, result, events, ended)
        for i, request in batch.chunks:
            request.num_computed_tokens += plan.counts[i]
            self.rt_backlog.count(request)
            if i in result.failed:
                ended.append((request, FinishReason.ERROR, result.failed[i]))
                continue
            self.kv.commit(request)
            if plan.samples[i]:
                self.running.caught_up(request)
                if request.first_token_s is None:
                    request.first_token_s = request.due_s = now_s
                self._take_tokens(i, [request], result, events, ended, num_computed=0)
        events += [self._finish(request, reason, now_s, message) for request, reason, message in ended]
        return events

    @staticmethod
    def _take_tokens(
        first: int,
        requests: list[Request],
        result: StepResult,
        events: list[Event],
        ended: list[tuple[Request, FinishReason, str | None]],
        num_computed: int = 1,
    ) -> None:
        """Rows [first, first + len(requests)) of the step, which drew a token each."""
        last = first + len(requests)
        sampled, stopped, failed = result.sampled[first:last], result.stopped[first:last], result.failed
        ends: dict[int, tuple[FinishReason, str | None]] = {}
        for i, (request, token_id) in enumerate(zip(requests, sampled, strict=True)):
            request.num_computed_tokens += num_computed
            token_ids = request.token_ids
            token_ids.append(token_id)
            if len(token_ids) >= request.end_tokens:
                ends[i] = FinishReason.LENGTH, None
        if requests[0].lane is Lane.RT:
            for request in requests:
                request.due_s += request.slo.tpot_s
        if True in stopped:
            ends.update({i: (FinishReason.STOP, None) for i, stop in enumerate(stopped) if stop})
        logprobs = repeat(None) if not result.logprobs else map(result.logprobs.get, range(first, last))
        ids = [request.request_id for request in requests]
        heard = list(map(_token_event, zip(ids, sampled, logprobs, strict=False)))
        if failed:
            messages = {i - first: failed[i] for i in range(first, last) if i in failed}
            ends.update({i: (FinishReason.ERROR, message) for i, message in messages.items()})
            heard = [event for i, event in enumerate(heard) if i not in messages]
        events += heard
        ended += [(requests[i], *end) for i, end in ends.items()]

    def _finish(
        self, request: Request, reason: FinishReason, now_s: float, message: str | None = None
    ) -> FinishedEvent:
        self.kv.free(request)
        self.running.remove(request)
        del self._requests[request.request_id]
        self.rt_backlog.count_finished(request, now_s)
        event = finished_event(request, reason, now_s, message)
        if event.slo_met is not None:
            self.pace.count_finished(event.slo_met, now_s)
        return event

    def check_integrity(self) -> None:
        """Verify the KV memory's invariants and that rows and queues agree. Raises AssertionError."""
        check_kv(self.kv, self._requests.values())
        self.running.check_integrity(len(self._requests))
