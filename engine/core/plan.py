"""What the core asks of a runner, and what comes back. Plans are data: plain lists, one entry a scheduled row."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.core.terms import SamplingParams, TokenLogprobs


@dataclass(slots=True)
class RowStart:
    """A row of the slot table is given to a request, new or resumed, before the step computes anything.

    `token_ids` is a snapshot of every token known now (prompt, then output), from which a runner rebuilds what it keeps
    per row (penalty counts, random state). `slots` are those of the tokens already computed, positions
    [0, len(slots)): a prefix found in the cache, or what a truncation left.
    """

    row: int
    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    slots: list[int]
    sampling: SamplingParams


@dataclass(slots=True)
class SlotCopy:
    """K and V of device slot `device_slots[i]` are saved to host slot `host_slots[i]`, in every layer."""

    device_slots: list[int]
    host_slots: list[int]


@dataclass(slots=True)
class Restore:
    """K and V of host slot `host_slots[i]` go to device slot `device_slots[i]`, in every layer. They are those of
    positions [start, start + len(device_slots)) of the request in slot-table row `row`, whose entries they become.
    Without host slots nothing is copied: a prefix was found in the cache, and only the table entries change.
    """

    row: int
    start: int
    device_slots: list[int]
    host_slots: list[int]


@dataclass(slots=True)
class StepPlan:
    """One iteration. Row i of the step computes tokens [starts[i], starts[i] + counts[i]) of the request that holds
    slot-table row `rows[i]`; its token ids and slots are its run in the flat lists `token_ids` and `slots`
    (both of length sum(counts)). Where `samples[i]`, the step also draws the token that follows. A token id of -1 is
    the one that the row drew in the step before, which was not through when this one was planned.

    A runner carries it out in this order: copies out, row starts, restores, forward pass, sampling.
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

    @property
    def is_empty(self) -> bool:
        """There is nothing to do; a plan without rows may still have copies to carry out."""
        return not (self.rows or self.restores or self.copies_out)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(slots=True)
class StepResult:
    """What a step drew. Lists are parallel to the plan's rows; rows that did not sample hold -1 and False.

    `stopped[i]` says that `sampled[i]` ends the request (end of sequence, a stop token or a stop string); the limit
    `max_tokens` is the scheduler's to apply. `logprobs` and `failed` are keyed by the row's index in the plan;
    a failed row's request ends with that message and harms no other.
    """

    sampled: list[int]
    stopped: list[bool]
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
