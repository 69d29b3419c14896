"""The contract between the loop and whatever computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.core.plan import StepPlan, StepResult


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """What a runner can hold. `num_blocks * block_size` slots of KV memory; `max_num_seqs` slot-table rows of
    `max_model_len` positions each; `num_host_slots` slots of host memory for what preempted requests lose."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_model_len: int
    vocab_size: int
    device: str
    dtype: str
    num_host_slots: int = 0


class ModelRunner(Protocol):
    """Carries out plans, one after another, from one thread."""

    @property
    def info(self) -> RunnerInfo: ...

    def execute(self, plan: StepPlan) -> StepResult: ...

    def close(self) -> None:
        """Give back device memory and stop helper threads. The runner is not used again."""
