"""Drives a runner with plans that a test composes itself: which requests, how many tokens of each, in scattered slots.

Use it to test a runner without a scheduler. For requests that a real scheduler plans, use `tests.factories.Steps`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.config import EngineConfig
from engine.core.plan import Restore, RowStart, SlotCopy, StepPlan, StepResult
from engine.core.terms import SamplingParams, TokenLogprobs
from engine.runner import loading
from engine.runner.torch_runner import TorchRunner

GREEDY = SamplingParams(max_tokens=1000, temperature=0.0, ignore_eos=True)


def load_runner(model: Path, **settings: object) -> TorchRunner:
    defaults = {"device": "cpu", "max_num_seqs": 8, "max_num_batched_tokens": 256, "num_kv_blocks": 64}
    config = EngineConfig(
        model=str(model), served_model_name="tiny", listen="unix:///unused", **{**defaults, **settings}
    )
    return loading.load_runner(config)


@dataclass
class Tracked:
    """A request, with what the scheduler would keep of it."""

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    slots: list[int] = field(default_factory=list)  # of the computed tokens
    has_started: bool = False
    finished: str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]


class Driver:
    """Plans and executes steps. It hands out free slots in random order, from both halves of every block."""

    def __init__(self, runner: TorchRunner, seed: int = 0) -> None:
        self.runner = runner
        self.random = random.Random(seed)
        self.free_slots = list(range(runner.info.num_blocks * runner.info.block_size))
        self.random.shuffle(self.free_slots)
        self.sequences: list[Tracked] = []
        self.restores: list[Restore] = []  # for the next step

    def add(
        self, prompt: Sequence[int], sampling: SamplingParams = GREEDY, row: int | None = None
    ) -> Tracked:
        taken = {sequence.row for sequence in self.sequences if not sequence.finished}
        if row is None:
            row = self.random.choice(sorted(set(range(self.runner.info.max_num_seqs)) - taken))
        sequence = Tracked(row, list(prompt), len(prompt), sampling)
        self.sequences.append(sequence)
        return sequence

    def truncate(self, sequence: Tracked, num_computed: int) -> None:
        """Preempts the request: it loses the slots of its suffix, and its row."""
        self.free_slots.extend(sequence.slots[num_computed:])
        self.random.shuffle(self.free_slots)
        del sequence.slots[num_computed:]
        sequence.has_started = False

    def save(self, sequence: Tracked, kept: int, host_slots: list[int]) -> None:
        """Preempts the request after a plan without rows has saved the suffix to host memory."""
        copy = SlotCopy(sequence.slots[kept:], host_slots)
        self.runner.execute(StepPlan([], [], [], [], [], [], copies_out=[copy]))
        self.truncate(sequence, kept)

    def restore(self, sequence: Tracked, host_slots: list[int]) -> None:
        """Makes the next step restore the suffix, into any free slots, before it computes."""
        slots = [self.free_slots.pop() for _ in host_slots]
        self.restores.append(Restore(sequence.row, len(sequence.slots), slots, host_slots))
        sequence.slots.extend(slots)

    def step(self, parts: Sequence[tuple[Tracked, int]]) -> StepResult:
        """Computes the next `count` tokens of each sequence in one step, and appends the tokens that it draws."""
        plan = StepPlan(
            rows=[], starts=[], counts=[], samples=[], token_ids=[], slots=[], restores=self.restores
        )
        kept = {restore.row: restore.start for restore in self.restores}
        self.restores = []
        for sequence, count in parts:
            start = len(sequence.slots)
            assert 0 < count <= len(sequence.token_ids) - start
            if not sequence.has_started:
                plan.row_starts.append(
                    RowStart(
                        sequence.row,
                        f"request-{sequence.row}",
                        list(sequence.token_ids),
                        sequence.num_prompt_tokens,
                        sequence.slots[: kept.get(sequence.row)],
                        sequence.sampling,
                    )
                )
                sequence.has_started = True
            slots = [self.free_slots.pop() for _ in range(count)]
            sequence.slots.extend(slots)
            plan.rows.append(sequence.row)
            plan.starts.append(start)
            plan.counts.append(count)
            plan.samples.append(start + count == len(sequence.token_ids))
            plan.token_ids.extend(sequence.token_ids[start : start + count])
            plan.slots.extend(slots)
        result = self.runner.execute(plan)
        for i, (sequence, _) in enumerate(parts):
            if i in result.failed:
                sequence.finished = result.failed[i]
            elif plan.samples[i]:
                sequence.token_ids += [result.sampled[i], *result.forced.get(i, [])]
                if i in result.logprobs:
                    sequence.logprobs.append(result.logprobs[i])
                if result.stopped[i]:
                    sequence.finished = "stop"
        return result

    def run(self, num_tokens: int, max_chunk: int = 7) -> None:
        """Runs random steps, in which chunks and single tokens are packed together, until each request has ended or has
        `num_tokens` output tokens."""
        while open_ones := [s for s in self.sequences if not s.finished and len(s.output) < num_tokens]:
            chosen = self.random.sample(open_ones, self.random.randint(1, len(open_ones)))
            self.step(
                [(s, self.random.randint(1, min(max_chunk, len(s.token_ids) - len(s.slots)))) for s in chosen]
            )
