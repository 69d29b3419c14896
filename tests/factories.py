"""Factories that many tests use: requests, schedulers, simulated runners, and steps that run until all requests end."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from engine.core.config import SchedulerConfig
from engine.core.events import Event, FinishedEvent, TokenEvent
from engine.core.kv.cache import KVCacheManager, KVOptions
from engine.core.plan import StepPlan, StepResult
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.terms import SLO, Lane, Policy, SamplingParams
from engine.runner.base import ModelRunner, PendingStep, RunnerInfo, RunnerRestarted
from engine.runner.simulated import SimulatedRunner

_numbers = itertools.count()


def runner_info(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_model_len: int = 128,
    num_host_slots: int = 64,
) -> RunnerInfo:
    return RunnerInfo(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        vocab_size=500,
        device="simulated",
        dtype="none",
        num_host_slots=num_host_slots,
        hidden_size=4,
    )


def simulated_runner(*, mean_output_tokens: int = 32, **info: int) -> SimulatedRunner:
    return SimulatedRunner(runner_info(**info), mean_output_tokens=mean_output_tokens)


class RestartingRunner:
    """A simulated runner that restarts, with empty memory, instead of returning the results numbered `lost`."""

    def __init__(self, lost: Collection[int], *, mean_output_tokens: int = 32, **info: int) -> None:
        self.info = runner_info(**info)
        self.num_results = 0
        self._lost = lost
        self._mean_output_tokens = mean_output_tokens
        self.start()

    def start(self) -> None:
        self.runner = SimulatedRunner(self.info, mean_output_tokens=self._mean_output_tokens)

    def launch(self, plan: StepPlan) -> PendingStep:
        return _LosableStep(self, self.runner, self.runner.launch(plan))

    def execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()

    def close(self) -> None:
        self.runner.close()

    def count_result(self) -> None:
        self.num_results += 1
        if self.num_results - 1 in self._lost:
            self.start()
            raise RunnerRestarted("rank 1 of 2 was killed by SIGKILL")


@dataclass(frozen=True)
class _LosableStep:
    owner: RestartingRunner
    runner: SimulatedRunner
    pending: PendingStep
    prepared_s: float = 0.0
    is_replayed: bool = False

    def result(self) -> StepResult:
        assert self.runner is self.owner.runner, "the result of a lost step is requested"
        self.owner.count_result()
        return self.pending.result()


def scheduler_for(
    info: RunnerInfo,
    *,
    max_num_batched_tokens: int = 32,
    reserved_rt_rows: int = 1,
    policy: Policy = Policy.BROS,
    options: KVOptions | None = None,
) -> Scheduler:
    """A scheduler whose host pool has the runner's host slots, unless `options` say otherwise."""
    config = SchedulerConfig(
        max_num_seqs=info.max_num_seqs,
        max_model_len=info.max_model_len,
        max_num_batched_tokens=max_num_batched_tokens,
        reserved_rt_rows=reserved_rt_rows,
        policy=policy,
        trims=info.trims,
    )
    options = options or KVOptions(num_host_slots=info.num_host_slots)
    return Scheduler(config, KVCacheManager(info.num_blocks, info.block_size, options))


def request(
    prompt: Sequence[int] = (5, 6, 7),
    *,
    lane: Lane = Lane.BE,
    max_tokens: int = 8,
    ignore_eos: bool = True,
    arrival_s: float = 0.0,
    priority: int = 0,
    sampling: SamplingParams | None = None,
    request_id: str | None = None,
) -> Request:
    return Request(
        request_id or f"r{next(_numbers)}",
        lane,
        prompt,
        sampling or SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos, temperature=0.0),
        arrival_s=arrival_s,
        slo=SLO(1.0, 0.1) if lane is Lane.RT else None,
        priority=priority,
    )


class Outputs:
    """The events that the owners of requests received."""

    def __init__(self) -> None:
        self.token_ids: dict[str, list[int]] = {}
        self.finished: dict[str, FinishedEvent] = {}

    def hear(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, TokenEvent):
                assert event.request_id not in self.finished, "a token after the end"
                self.token_ids.setdefault(event.request_id, []).append(event.token_id)
            else:
                assert event.request_id not in self.finished, "finished twice"
                self.finished[event.request_id] = event


class Steps:
    """Steps like those of an engine. With `ahead`, each is launched before the result of the one before it is taken."""

    def __init__(
        self, scheduler: Scheduler, runner: ModelRunner, outputs: Outputs, *, ahead: bool = False
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.outputs = outputs
        self._ahead = ahead
        self._under_way: deque[tuple[StepPlan, PendingStep]] = deque()

    def step(self, now_s: float = 0.0, took_s: float = 0.0) -> int:
        """Schedules at `now_s` and takes a result `took_s` later. Returns the number of tokens that were scheduled."""
        plan = self.scheduler.schedule(now_s)
        assert plan.num_tokens <= self.scheduler.config.max_num_batched_tokens
        if not plan.is_empty:
            self._under_way.append((plan, self.runner.launch(plan)))
        if self._under_way and (len(self._under_way) > self._ahead or plan.is_empty):
            self._take_result(now_s + took_s)
        return plan.num_tokens

    def _take_result(self, now_s: float) -> None:
        plan, pending = self._under_way.popleft()
        try:
            result = pending.result()
        except RunnerRestarted:
            self._under_way.clear()
            self.scheduler.take_back()
            return
        self.outputs.hear(self.scheduler.update(plan, result, now_s))
        if result.lost_kv:
            for _, later in self._under_way:
                later.result()
            self._under_way.clear()
            self.scheduler.take_back()

    def run_to_end(self, max_steps: int = 20_000) -> None:
        """Steps until no request is left, and checks every invariant after each step."""
        for number in range(max_steps):
            if not self.scheduler.has_work and not self._under_way:
                return
            had_result = bool(self._under_way)
            num_tokens = self.step(float(number))
            assert num_tokens or had_result, "there is work, but nothing was computed"
            self.scheduler.check_integrity()
        raise AssertionError(f"requests are left after {max_steps} steps")


def step(scheduler: Scheduler, runner: ModelRunner, outputs: Outputs, now_s: float = 0.0) -> int:
    """Runs one step; returns the number of tokens that it computed."""
    return Steps(scheduler, runner, outputs).step(now_s)


def run_to_end(
    scheduler: Scheduler, runner: ModelRunner, outputs: Outputs | None = None, max_steps: int = 20_000
) -> Outputs:
    outputs = outputs or Outputs()
    Steps(scheduler, runner, outputs).run_to_end(max_steps)
    return outputs
