"""What a request asks about its prompt: which positions a step still has to read for it, and what was found so far.

Every position is read once. A preemption loses K and V, but nothing that was read; only results that never arrive do.

    prompt  0 1 2 3 4 5 6 7 8 9      prompt_logprobs: 0 to 8    pooling "mean": 0 to 9
                              ^      score_token_ids: 9         pooling "last": 9
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.core.terms import PromptResult, SamplingParams


@dataclass(slots=True)
class RowReading:
    """What one step read at the positions of one row.

    `logprobs` are those of the tokens that follow the positions, as bytes of `PromptResult`. `hidden` holds vectors of
    float32 as bytes: the last hidden state of the last position, or sums over positions.
    """

    logprobs: list[bytes] = field(default_factory=list)
    scores: tuple[float, ...] | None = None
    hidden: list[bytes] = field(default_factory=list)

    def add(self, later: RowReading) -> None:
        """Take in what was read at the positions that follow."""
        self.logprobs += later.logprobs
        self.hidden += later.hidden
        if later.scores is not None:
            self.scores = later.scores


class PromptReading:
    """Positions [first, end) of the prompt are read, in this order: those before `num_planned` have been read, or are
    being read by steps under way."""

    __slots__ = ("_asks_logprobs", "_found", "_num_read", "end", "num_planned")

    def __init__(self, sampling: SamplingParams, num_prompt_tokens: int) -> None:
        reads_all = sampling.prompt_logprobs is not None or sampling.pooling == "mean"
        reads_last = bool(sampling.score_token_ids) or sampling.pooling is not None
        self._asks_logprobs = sampling.prompt_logprobs is not None
        self.num_planned = self._num_read = 0 if reads_all else num_prompt_tokens - 1
        self.end = num_prompt_tokens if reads_last else num_prompt_tokens - 1
        self._found = RowReading()

    @property
    def num_skippable_tokens(self) -> int | None:
        """How many tokens may be found in the prefix cache, where they have no hidden states; None: any number."""
        return None if self.num_planned >= self.end else self.num_planned

    def plan(self, start: int, end: int) -> tuple[int, int] | None:
        """The positions [first, end) that a step which computes [start, end) reads; None if there are none."""
        first, end = max(start, self.num_planned), min(end, self.end)
        if first >= end:
            return None
        assert first == self.num_planned, "a position was skipped before it was read"
        self.num_planned = end
        return first, end

    def take(self, found: RowReading, end: int) -> None:
        """Take in what a step read at the positions up to `end`."""
        self._found.add(found)
        self._num_read = end

    def lose_planned(self) -> None:
        """The results of the steps under way will not come."""
        self.num_planned = self._num_read

    def result(self) -> PromptResult:
        """What was found, once all positions are read."""
        found = self._found
        logprobs = b"".join(found.logprobs) if self._asks_logprobs else None
        return PromptResult(found.scores, logprobs, tuple(found.hidden))
