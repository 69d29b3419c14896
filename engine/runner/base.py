"""The contract between the loop and whatever computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.core.plan import StepPlan, StepResult


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """What a runner can hold. `num_blocks * block_size` slots of KV memory; `max_num_seqs` slot-table rows of
    `max_model_len` positions each; `num_host_slots` slots of host memory for what preempted requests lose.
    `computes_beside_host`: the host's processor is free while a step is computed. `max_num_batched_tokens`: of a
    step."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_model_len: int
    vocab_size: int
    device: str
    dtype: str
    num_host_slots: int = 0
    computes_beside_host: bool = False
    max_num_batched_tokens: int = 512


class RunnerRestarted(Exception):
    """The runner had to be started anew, and all that it held is gone: rows, K and V, copies on the host, and the steps
    under way, whose results nobody gets. It holds as much as before, and takes plans as a new one does. Says why."""


class UnsupportedModel(ValueError):
    """The model cannot be served as configured. The message names it and says why, and what to do instead."""


class PendingStep(Protocol):
    """A step under way."""

    def result(self) -> StepResult:
        """Waits for it. Once, and in the order in which steps were launched. Raises RunnerRestarted."""


@dataclass(frozen=True, slots=True)
class DoneStep:
    """The `PendingStep` of a runner that computes before it returns."""

    _result: StepResult

    def result(self) -> StepResult:
        return self._result


class ModelRunner(Protocol):
    """Carries out plans, one after another, from one thread. Two steps may be under way: the second may be launched
    before the first one's result is asked for."""

    @property
    def info(self) -> RunnerInfo: ...

    def launch(self, plan: StepPlan) -> PendingStep:
        """Begins a step, after those begun before. The plan may be changed as soon as this returns."""

    def execute(self, plan: StepPlan) -> StepResult:
        """`launch(plan).result()`"""

    def close(self) -> None:
        """Give back device memory and stop helper threads. The runner is not used again."""
