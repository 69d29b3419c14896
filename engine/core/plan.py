"""Plans and results: what the core tells a runner to do, and what the runner returns, as plain lists by row."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from engine.core.reading import RowReading
from engine.core.terms import SamplingParams, TokenLogprobs


@dataclass(slots=True)
class RowStart:
    """Gives a row of the slot table to a new or resumed request before the step computes anything.

    `token_ids` is a snapshot of all tokens known now (prompt, then output), from which a runner rebuilds what it keeps
    per row (penalty counts, random state). `slots` hold the tokens that are already computed, positions
    [0, len(slots)): a prefix found in the cache, or what a preemption left.
    """

    row: int
    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    slots: list[int]
    sampling: SamplingParams


@dataclass(slots=True)
class SlotCopy:
    """Saves K and V of device slot `device_slots[i]` to host slot `host_slots[i]`, in every layer."""

    device_slots: list[int]
    host_slots: list[int]


@dataclass(slots=True)
class Restore:
    """Copies K and V of host slot `host_slots[i]`, or of device slot `known_slots[i]`, to device slot
    `device_slots[i]`, in every layer.

    The device slots become the entries of positions [start, start + len(device_slots)) in row `row` of the slot table.
    If there are neither host slots nor known slots, nothing is copied: a prefix was found in the cache, and only the
    table entries change. All known slots of a restore are read before any of its device slots is written.
    """

    row: int
    start: int
    device_slots: list[int]
    host_slots: list[int]
    known_slots: list[int] = field(default_factory=list)


@dataclass(slots=True)
class StepPlan:
    """One step of the engine.

    Row i of the step computes tokens [starts[i], starts[i] + counts[i]) of the request that holds row `rows[i]` of the
    slot table. Its token ids and slots are its part of the flat lists `token_ids` and `slots`, both of length
    sum(counts). If `samples[i]`, the step also draws the token that follows. A token id of -1 stands for the token that
    the row drew in the previous step, which had not ended when this one was planned. `reads` says by row i at which of
    the positions [first, end) that it computes something is read that its request asks about its prompt.

    A runner carries a plan out in this order: copies out, row starts, restores one after
    another, forward pass, sampling.
    """

    rows: list[int]
    starts: list[int]
    counts: list[int]
    samples: list[bool]
    token_ids: list[int]
    slots: list[int]
    row_starts: list[RowStart] = field(default_factory=list)
    copies_out: list[SlotCopy] = field(default_factory=list)
    restores: list[Restore] = field(default_factory=list)
    reads: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do; a plan without rows may still have copies to carry out."""
        return not (self.rows or self.restores or self.copies_out)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def without(self, apart: Collection[int]) -> StepPlan:
        """This plan without the rows of these indices, which are then computed by plans that `only` returns."""
        rest = self._part([i for i in range(len(self.rows)) if i not in apart])
        rest.row_starts, rest.copies_out, rest.restores = self.row_starts, self.copies_out, self.restores
        return rest

    def only(self, index: int) -> StepPlan:
        """The computation of one row, to follow `without`."""
        return self._part([index])

    def _part(self, indices: list[int]) -> StepPlan:
        """The computation of these rows."""
        ends, end = [], 0
        for count in self.counts:
            end += count
            ends.append(end)
        tokens = [t for i in indices for t in range(ends[i] - self.counts[i], ends[i])]
        return StepPlan(
            rows=[self.rows[i] for i in indices],
            starts=[self.starts[i] for i in indices],
            counts=[self.counts[i] for i in indices],
            samples=[self.samples[i] for i in indices],
            token_ids=[self.token_ids[t] for t in tokens],
            slots=[self.slots[t] for t in tokens],
            reads={new: self.reads[i] for new, i in enumerate(indices) if i in self.reads},
        )


@dataclass(slots=True)
class StepResult:
    """The tokens that a step drew. Lists are parallel to the rows of the plan; rows that did not sample hold -1 and
    False.

    `stopped[i]` says that `sampled[i]` ends the request (end of sequence, a stop token or a stop string); the scheduler
    applies the limit `max_tokens`. `logprobs`, `readings` (one for each of the plan's `reads`) and `failed` are keyed
    by the index of a row in the plan. The request of a failed row ends with that message; the others go on. `lost_kv`
    says that the K and V of a failed row were not written. Since they may be known as a prefix already, nothing that
    was computed so far may be relied on.

    `forced[i]` holds the tokens that follow `sampled[i]` because the request's grammar allows nothing else. Then
    `stopped[i]` says that the last of them ends the request. If a step under way draws the token after `sampled[i]`,
    that is the first of them.

    `num_graph_failures` counts CUDA graphs that could not be replayed. The step was then computed without them.
    """

    sampled: list[int]
    stopped: list[bool]
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    lost_kv: bool = False
    forced: dict[int, list[int]] = field(default_factory=dict)
    readings: dict[int, RowReading] = field(default_factory=dict)
    num_graph_failures: int = 0

    def take_in(self, part: StepResult, indices: list[int]) -> None:
        """Enter the result of a part of the step, whose rows have these indices in the whole step."""
        for i, sampled, stopped in zip(indices, part.sampled, part.stopped, strict=True):
            self.sampled[i], self.stopped[i] = sampled, stopped
        self.logprobs.update({indices[i]: value for i, value in part.logprobs.items()})
        self.failed.update({indices[i]: message for i, message in part.failed.items()})
        self.num_graph_failures += part.num_graph_failures
        self.forced.update({indices[i]: token_ids for i, token_ids in part.forced.items()})
        self.readings.update({indices[i]: reading for i, reading in part.readings.items()})
        self.lost_kv = self.lost_kv or part.lost_kv
