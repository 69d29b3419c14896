"""The contract between the engine's loop and the runners that compute its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.core.plan import StepPlan, StepResult
from engine.grammars.contract import GrammarCompiler


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """The capacity of a runner, and what it runs.

    It has `num_blocks * block_size` slots of KV memory, `max_num_seqs` slot-table rows of `max_model_len` positions
    each, and `num_host_slots` slots of host memory for the tokens that preempted requests give up. A step computes at
    most `max_num_batched_tokens` tokens. `computes_beside_host` says that the host's processor is free while a step is
    computed. `hidden_size` is 0 if the hidden states cannot be read. `quantization` is how the weights
    are stored. `trims` is the table of `engine.core.trim`.
    """

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
    hidden_size: int = 0
    quantization: str = "none"
    trims: tuple[int, ...] = ()


class UnsupportedModel(ValueError):
    """The model cannot be served as configured. The message names it, and says why and what to do instead."""


class RunnerRestarted(Exception):
    """The runner was restarted and has lost its rows, K and V, host copies, and the steps under way.

    The results of those steps are lost. The runner's capacity is unchanged, and it takes plans like a new one. The
    message says why it was restarted.
    """


class PendingStep(Protocol):
    """A step that was launched and whose result has not been taken."""

    @property
    def prepared_s(self) -> float:
        """How long `launch` took before the device could begin to compute."""

    @property
    def is_replayed(self) -> bool:
        """Whether `launch` replayed a recording of the step, which takes a small part of the usual time."""

    def result(self) -> StepResult:
        """Waits for the step to end. Call it once per step, in launch order. Raises RunnerRestarted."""


@dataclass(frozen=True, slots=True)
class DoneStep:
    """The `PendingStep` of a runner that computes a step before `launch` returns."""

    _result: StepResult
    prepared_s: float = 0.0
    is_replayed: bool = False

    def result(self) -> StepResult:
        return self._result


class ModelRunner(Protocol):
    """Carries out plans one after another, called from one thread.

    Two steps may be under way: the second may be launched before the result of the first is taken.
    """

    @property
    def info(self) -> RunnerInfo: ...

    @property
    def grammars(self) -> GrammarCompiler:
        """Compiles the grammars of requests before plans start their rows."""

    def launch(self, plan: StepPlan) -> PendingStep:
        """Begins a step that follows all steps launched before. The caller may change the plan once this returns."""

    def execute(self, plan: StepPlan) -> StepResult:
        """The same as `launch(plan).result()`."""

    def close(self) -> None:
        """Releases device memory and stops helper threads. The runner must not be used afterwards."""
