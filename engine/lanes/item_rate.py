"""How fast an engine ends items: the rate from which the job system decides how many to queue for it."""

from __future__ import annotations

import math

MEMORY_S = 5.0  # an end counts less and less over this time
# The I/O thread takes the time several times per second. A longer interval means that the process stood still, which
# says nothing about how long items take.
LONGEST_INTERVAL_S = 1.0
# Right after the start, the rate is that of at least so long a time: the first ends alone say little.
SHORTEST_TIME_S = 1.0
CHANGE_FACTOR = 1.5


class ItemRate:
    """Running means of the items, and of their prompt and output tokens, that end per second.

    Time without work does not count. After a pause the rate is therefore that of the time before it, and it adapts
    within seconds.
    """

    def __init__(self, now_s: float) -> None:
        self._updated_s = now_s
        self._time_s = 0.0
        self._items = 0.0
        self._tokens = 0.0
        self._announced = 0.0

    def count(self, num_tokens: int) -> None:
        """Count an item that has ended, with the tokens of its prompt and its outputs."""
        self._items += 1.0
        self._tokens += num_tokens

    def advance(self, now_s: float, *, is_busy: bool) -> None:
        """Let the time pass since the last call. `is_busy`: there was work in it."""
        elapsed_s = min(max(now_s - self._updated_s, 0.0), LONGEST_INTERVAL_S)
        self._updated_s = now_s
        if is_busy:
            kept = math.exp(-elapsed_s / MEMORY_S)
            self._time_s = self._time_s * kept + elapsed_s
            self._items *= kept
            self._tokens *= kept

    @property
    def items_per_s(self) -> float:
        return self._items / max(self._time_s, SHORTEST_TIME_S)

    @property
    def tokens_per_s(self) -> float:
        return self._tokens / max(self._time_s, SHORTEST_TIME_S)

    def announce(self) -> dict[str, float]:
        """The rates as fields of a heartbeat."""
        self._announced = self.items_per_s
        return {"items_per_s": round(self._announced, 3), "tokens_per_s": round(self.tokens_per_s, 1)}

    @property
    def is_news(self) -> bool:
        """Whether the rate is so different from the announced one that the next heartbeat should not wait."""
        low, high = sorted((self.items_per_s, self._announced))
        return high > CHANGE_FACTOR * low and high >= 1.0
