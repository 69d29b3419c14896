"""The runner of a simulation: computes nothing, but knows how long each output is and how long each step takes."""

from __future__ import annotations

import random

from engine.core.plan import StepPlan, StepResult
from engine.grammars.contract import AnyGrammar
from engine.runner.base import DoneStep, RunnerInfo
from engine.sim.clock import VirtualClock
from engine.sim.device import NEVER, Slowdown, StepCost

TOKEN_ID = 7  # every output token


class TraceRunner:
    """Advances `clock` by the time of each step, and ends each request after its true number of output tokens.

    `output_tokens` maps the id of each open request to that number; the scheduler does not see it. The time of a step
    is that of `cost`, times lognormal noise with the coefficient of variation `noise`, times the factor of `slowdown`.
    """

    def __init__(
        self,
        info: RunnerInfo,
        cost: StepCost,
        clock: VirtualClock,
        output_tokens: dict[str, int],
        *,
        noise: float = 0.05,
        seed: int = 0,
        slowdown: Slowdown = NEVER,
    ) -> None:
        self._info = info
        self.grammars = AnyGrammar()
        self._cost = cost
        self._slowdown = slowdown
        self._clock = clock
        self._output_tokens = output_tokens
        self._noise = noise
        self._rng = random.Random(f"{seed} noise")
        # Per row: the number of computed tokens when the last one is sampled.
        self._ends = [0] * info.max_num_seqs

    @property
    def info(self) -> RunnerInfo:
        return self._info

    def launch(self, plan: StepPlan) -> DoneStep:
        return DoneStep(self.execute(plan))

    def execute(self, plan: StepPlan) -> StepResult:
        ends = self._ends
        for start in plan.row_starts:
            ends[start.row] = start.num_prompt_tokens + self._output_tokens[start.request_id] - 1
        elapsed_s = self._step_s(plan) * self._slowdown.factor_at(self._clock.now_s)
        if self._noise:
            elapsed_s *= self._rng.lognormvariate(0.0, self._noise)
        self._clock.advance(elapsed_s)
        starts, counts, samples = plan.starts, plan.counts, plan.samples
        sampled: list[int] = []
        stopped: list[bool] = []
        for i, row in enumerate(plan.rows):
            # A request ends when all its tokens but the last are computed.
            stopped.append(starts[i] + counts[i] == ends[row])
            sampled.append(TOKEN_ID if samples[i] else -1)
        return StepResult(sampled, stopped)

    def _step_s(self, plan: StepPlan) -> float:
        starts, counts = plan.starts, plan.counts
        tokens, rows = len(plan.token_ids), len(plan.rows)
        # Token i of a chunk attends to start + i + 1 tokens: count * start + count * (count + 1) / 2 pairs.
        read, pairs = tokens, 0
        for i, start in enumerate(starts):
            count = counts[i]
            read += start
            pairs += count * start + count * (count + 1) // 2
        copied = 0
        if plan.copies_out or plan.restores:
            copied += sum(len(copy.host_slots) for copy in plan.copies_out)
            copied += sum(len(restore.host_slots) for restore in plan.restores)
        return self._cost.step_time_s(tokens, rows, read, pairs, copied)

    def close(self) -> None:
        """Do nothing; there is nothing to release."""
