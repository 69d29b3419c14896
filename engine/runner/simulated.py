"""A runner without a model, whose KV memory holds hashes: a wrong slot or a lost token shows in the output.

The slots of a sequence form a hash chain. The entry of position p is a hash of token p and of the entry of position
p - 1, which is read back through the slot table as attention would read it. The next token is a function of the last
entry, so every output is a deterministic function of the prompt (`continuation`), no matter how the scheduler mixes,
preempts and moves requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.core.plan import RowStart, StepPlan, StepResult
from engine.core.terms import SamplingParams
from engine.grammars.contract import AnyGrammar
from engine.runner.base import RunnerInfo

_MASK = (1 << 61) - 1
_SEED = 0x9E3779B97F4A7C15 & _MASK
FIRST_TOKEN_ID = 3  # lower ids are reserved for special tokens, as tokenizers reserve them


@dataclass(frozen=True, slots=True)
class SimulatedCost:
    """The duration of a step, in seconds: a constant, plus a time per token and a time per row."""

    step_s: float = 0.0
    token_s: float = 0.0
    row_s: float = 0.0

    def of(self, plan: StepPlan) -> float:
        return self.step_s + self.token_s * plan.num_tokens + self.row_s * len(plan.rows)


def _chain(entry: int, token_id: int) -> int:
    return (entry * 6364136223846793005 + token_id * 1442695040888963407 + 1) & _MASK


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """A step that ends once `_wait` has waited for its duration."""

    _result: StepResult
    _cost_s: float
    _wait: Callable[[float], None] | None

    def result(self) -> StepResult:
        if self._wait is not None and self._cost_s > 0:
            self._wait(self._cost_s)
        return self._result


class SimulatedRunner:
    """A `ModelRunner` that computes hashes in place of a model.

    Outputs end after a geometrically distributed number of tokens with the mean `mean_output_tokens`, unless the
    request ignores end-of-sequence. `wait` is called with the duration of each step: `time.sleep` in real time, or a
    function that advances a virtual clock.
    """

    def __init__(
        self,
        info: RunnerInfo,
        *,
        cost: SimulatedCost | None = None,
        wait: Callable[[float], None] | None = None,
        mean_output_tokens: int = 32,
    ) -> None:
        self._info = info
        self.grammars = AnyGrammar()
        self._cost = cost
        self._wait = wait
        self._mean_output_tokens = mean_output_tokens
        self._entries = [0] * (info.num_blocks * info.block_size)
        self._host_entries = [0] * info.num_host_slots
        self._row_slots: list[list[int]] = [[] for _ in range(info.max_num_seqs)]
        self._row_start: list[RowStart | None] = [None] * info.max_num_seqs
        self._drawn = [-1] * info.max_num_seqs  # by row: the token that it drew last

    @property
    def info(self) -> RunnerInfo:
        return self._info

    def launch(self, plan: StepPlan) -> SimulatedStep:
        for copy in plan.copies_out:
            for slot, host_slot in zip(copy.device_slots, copy.host_slots, strict=True):
                self._host_entries[host_slot] = self._entries[slot]
        for row_start in plan.row_starts:
            self._row_start[row_start.row] = row_start
            self._row_slots[row_start.row] = list(row_start.slots)
        for restore in plan.restores:
            self._row_slots[restore.row][restore.start :] = restore.device_slots
            for slot, host_slot in zip(restore.device_slots, restore.host_slots, strict=False):
                self._entries[slot] = self._host_entries[host_slot]
        sampled = [-1] * len(plan.rows)
        stopped = [False] * len(plan.rows)
        offset = 0
        for i, row in enumerate(plan.rows):
            end = offset + plan.counts[i]
            entry = self._compute(row, plan.starts[i], plan.token_ids[offset:end], plan.slots[offset:end])
            offset = end
            if plan.samples[i]:
                start = self._row_start[row]
                assert start is not None
                num_output = plan.starts[i] + plan.counts[i] - start.num_prompt_tokens + 1
                sampled[i], stopped[i] = self._draw(entry, num_output, start.sampling)
                self._drawn[row] = sampled[i]
        cost_s = self._cost.of(plan) if self._cost is not None else 0.0
        return SimulatedStep(StepResult(sampled=sampled, stopped=stopped), cost_s, self._wait)

    def execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()

    def _compute(self, row: int, start: int, token_ids: list[int], slots: list[int]) -> int:
        held = self._row_slots[row]
        del held[start:]  # truncated; a gap before `start` would be a mistake of the core
        assert len(held) == start, f"row {row} holds {len(held)} slots, the plan starts at {start}"
        entry = self._entries[held[-1]] if held else _SEED
        for token_id, slot in zip(token_ids, slots, strict=True):
            entry = _chain(entry, self._drawn[row] if token_id < 0 else token_id)
            self._entries[slot] = entry
        held.extend(slots)
        return entry

    def _draw(self, entry: int, num_output: int, sampling: SamplingParams) -> tuple[int, bool]:
        span = self._info.vocab_size - FIRST_TOKEN_ID
        token_id = FIRST_TOKEN_ID + (entry >> 13) % span
        ends = (entry >> 7) % self._mean_output_tokens == 0 and not sampling.ignore_eos
        return token_id, (ends or token_id in sampling.stop_token_ids) and num_output > sampling.min_tokens

    def continuation(self, prompt_token_ids: list[int], sampling: SamplingParams) -> list[int]:
        """Returns the output that a request with this prompt must get, computed by itself."""
        entry = _SEED
        for token_id in prompt_token_ids:
            entry = _chain(entry, token_id)
        output: list[int] = []
        while len(output) < sampling.max_tokens:
            token_id, stopped = self._draw(entry, len(output) + 1, sampling)
            output.append(token_id)
            if stopped:
                break
            entry = _chain(entry, token_id)
        return output

    def close(self) -> None:
        self._entries.clear()
