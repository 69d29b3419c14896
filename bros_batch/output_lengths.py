"""How long the outputs of a job are, while only the short ones have ended.

Rows that end first are those with short outputs, so the mean of those says too little. Rows in flight say that their
outputs are longer than what they have: they are censored, and the distribution is estimated from both (Kaplan and
Meier, 1958).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_BINS = 500
# The distribution ends at so many times the longest output that is known, unless the limit of outputs is less.
BEYOND = 4.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of outputs in tokens, each of which counts like `weight` rows."""

    tokens: Sequence[int] = ()
    weight: float = 1.0

    @property
    def rows(self) -> float:
        return len(self.tokens) * self.weight


class OutputLengths:
    """The distribution of lengths: from outputs that have `ended`, from outputs that were `expected` (of earlier jobs),
    and from `in_flight` others that have `so_far` tokens each. None is longer than `limit`; if that is 0, there are no
    outputs. The guess that they have `guess` tokens on average counts where nothing is known, and hardly elsewhere.
    `evidence` is the number of rows that all this is worth.
    """

    def __init__(
        self,
        guess: float,
        limit: float = math.inf,
        *,
        ended: Lengths | None = None,
        expected: Lengths | None = None,
        in_flight: float = 0.0,
        so_far: float = 0.0,
    ) -> None:
        known = [each for each in (ended, expected) if each is not None]
        num_known = sum(each.rows for each in known)
        self.evidence = num_known + in_flight / 2
        self._guess = min(guess, limit)
        longest = max([so_far, *(max(each.tokens, default=0) for each in known)]) or guess
        limit = min(limit, BEYOND * longest)
        self._width = max(limit / MAX_BINS, 1.0)
        # By number of bins that an output has: how many more it has on average.
        self._more = [0.0]
        num_bins = math.ceil(limit / self._width)
        if not self.evidence or not num_bins:
            return
        ends, alive = [0.0] * num_bins, 0.0
        for each in known:
            for tokens in each.tokens:
                ends[min(max(math.ceil(tokens / self._width), 1), num_bins) - 1] += each.weight
        guessed = 1 / (1 + num_known)
        guessed_ends = guessed * min(self._width / max(guess, 1.0), 1.0)
        self._more *= num_bins + 1
        for bin in reversed(range(num_bins)):
            alive += ends[bin]
            began = alive + (in_flight if (bin + 1) * self._width <= so_far else 0.0)
            goes_on = 1 - (ends[bin] + guessed_ends) / (began + guessed)
            self._more[bin] = 1 + goes_on * self._more[bin + 1]

    @property
    def mean(self) -> float:
        """The tokens of an output that has not begun."""
        return self.left(0.0) if self.evidence else self._guess

    def left(self, so_far: float) -> float:
        """How many more tokens an output has that has so many and goes on."""
        last = max(len(self._more) - 2, 0)
        more = self._more[min(int(so_far / self._width), last)]
        return max(
            more * self._width - (self._width - 1) / 2, 0.0
        )  # an output ends somewhere in its last bin
