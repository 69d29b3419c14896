"""How much processor time compilation may take from steps; beyond that, it takes only what they leave."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.05  # of one core
MOST_S = 1.0  # saved up while nothing is compiled: enough for a hundred usual grammars


class Allowance:
    """Processor time that grows with time and is spent afterwards, since what a grammar takes is not known before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left_s = MOST_S
        self._updated_s = clock()

    def is_left(self) -> bool:
        """Whether some is left, or will have grown by now."""
        now_s = self._clock()
        self._left_s = min(MOST_S, self._left_s + SHARE * (now_s - self._updated_s))
        self._updated_s = now_s
        return self._left_s > 0

    def spend(self, cpu_s: float) -> None:
        """Takes note of time that was spent, which may be more than was left."""
        self._left_s -= cpu_s
