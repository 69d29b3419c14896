"""A runner without a model, whose KV memory holds hashes: a wrong slot or a lost token shows in the output.

The slots of a sequence form a hash chain. The entry of position p is a hash of token p and of the entry of position
p - 1, which is read back through the slot table as attention would read it. The next token is a function of the last
entry, so every output is a deterministic function of the prompt (`continuation`), no matter how the scheduler mixes,
preempts and moves requests. So are the log-probabilities and hidden states, which are functions of an entry too.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.core.plan import RowStart, StepPlan, StepResult
from engine.core.reading import PromptReading, RowReading
from engine.core.terms import PromptResult, SamplingParams, TokenLogprobs
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


def _logprob(entry: int, token_id: int) -> float:
    return -(_chain(entry, token_id) >> 37) / (1 << 20)


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """A step that ends once `_wait` has waited for its duration."""

    _result: StepResult
    _cost_s: float
    _wait: Callable[[float], None] | None
    prepared_s: float = 0.0
    is_replayed: bool = False

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
            if restore.known_slots:
                self._copy(restore.known_slots, restore.device_slots)
        readings: dict[int, RowReading] = {}
        sampled = [-1] * len(plan.rows)
        stopped = [False] * len(plan.rows)
        logprobs: dict[int, TokenLogprobs] = {}
        offset = 0
        for i, row in enumerate(plan.rows):
            end = offset + plan.counts[i]
            entry = self._compute(row, plan.starts[i], plan.token_ids[offset:end], plan.slots[offset:end])
            offset = end
            if i in plan.reads:
                readings[i] = self._read(row, *plan.reads[i])
            if plan.samples[i]:
                start = self._row_start[row]
                assert start is not None
                num_output = plan.starts[i] + plan.counts[i] - start.num_prompt_tokens + 1
                sampled[i], stopped[i] = self._draw(entry, num_output, start.sampling)
                self._drawn[row] = sampled[i]
                if (num_likeliest := start.sampling.logprobs) is not None:
                    likeliest = range(FIRST_TOKEN_ID, FIRST_TOKEN_ID + num_likeliest)
                    top = tuple((token_id, _logprob(entry, token_id)) for token_id in likeliest)
                    logprobs[i] = TokenLogprobs(_logprob(entry, sampled[i]), top)
        cost_s = self._cost.of(plan) if self._cost is not None else 0.0
        result = StepResult(sampled=sampled, stopped=stopped, logprobs=logprobs, readings=readings)
        return SimulatedStep(result, cost_s, self._wait)

    def execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()

    def _copy(self, known_slots: Sequence[int], device_slots: Sequence[int]) -> None:
        """Copy the tokens in `known_slots` to the first of `device_slots`."""
        known = [self._entries[slot] for slot in known_slots]
        for slot, entry in zip(device_slots, known, strict=False):
            self._entries[slot] = entry

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

    def _read(self, row: int, first: int, end: int) -> RowReading:
        start = self._row_start[row]
        assert start is not None
        entries = [self._entries[slot] for slot in self._row_slots[row][first:end]]
        assert len(entries) == end - first, f"row {row} has no tokens at positions {first} to {end}"
        return self._reading(start.token_ids[: start.num_prompt_tokens], first, entries, start.sampling)

    def _reading(
        self, prompt_token_ids: list[int], first: int, entries: list[int], sampling: SamplingParams
    ) -> RowReading:
        """What is read at the positions from `first` on, which have these entries."""
        end = first + len(entries)
        reading = RowReading()
        if sampling.prompt_logprobs is not None:
            following = prompt_token_ids[first + 1 : end + 1]
            for entry, token_id in zip(entries, following, strict=False):
                likeliest = [FIRST_TOKEN_ID + j for j in range(sampling.prompt_logprobs)]
                reading.logprobs.append(struct.pack("<f", _logprob(entry, token_id)))
                reading.logprobs += [struct.pack("<if", each, _logprob(entry, each)) for each in likeliest]
        if sampling.score_token_ids and end == len(prompt_token_ids):
            reading.scores = tuple(_logprob(entries[-1], token_id) for token_id in sampling.score_token_ids)
        if sampling.pooling == "mean":
            vectors = [self._hidden(entry) for entry in entries]
            reading.hidden.append(array("f", map(sum, zip(*vectors, strict=True))).tobytes())
        elif sampling.pooling == "last" and end == len(prompt_token_ids):
            reading.hidden.append(array("f", self._hidden(entries[-1])).tobytes())
        return reading

    def _hidden(self, entry: int) -> list[int]:
        return [_chain(entry, i) >> 53 for i in range(self._info.hidden_size)]

    def prompt_result(self, prompt_token_ids: list[int], sampling: SamplingParams) -> PromptResult:
        """Returns what a request with this prompt must learn about it, computed by itself, in one step."""
        entry, entries = _SEED, []
        for token_id in prompt_token_ids:
            entry = _chain(entry, token_id)
            entries.append(entry)
        reading = PromptReading(sampling, len(prompt_token_ids))
        positions = reading.plan(0, len(prompt_token_ids))
        if positions is not None:
            first, end = positions
            reading.take(self._reading(prompt_token_ids, first, entries[first:end], sampling), end)
        return reading.result()

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
