"""When requests arrive: endless, rising times in seconds, drawn lazily."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class Arrivals(Protocol):
    def times(self, rng: random.Random, rate: float) -> Iterator[float]:
        """`rate` is the mean number a second."""
        ...


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma distributed times between arrivals; `cv` is their coefficient of variation. 1 is a Poisson process, more
    comes in bursts."""

    cv: float = 1.0

    def times(self, rng: random.Random, rate: float) -> Iterator[float]:
        shape = 1 / self.cv**2
        scale = 1 / (rate * shape)
        time_s = 0.0
        while True:
            time_s += rng.gammavariate(shape, scale)
            yield time_s


@dataclass(frozen=True, slots=True)
class OnOff:
    """Gamma distributed times between arrivals, as long as the source is on; nothing while it is off. Times on and off
    are exponentially distributed: `cycle_s` together on average, of which it is on for the share `on_share`."""

    cv: float
    on_share: float
    cycle_s: float

    def times(self, rng: random.Random, rate: float) -> Iterator[float]:
        on_s, off_s = self.on_share * self.cycle_s, (1 - self.on_share) * self.cycle_s
        shape = 1 / self.cv**2
        scale = self.on_share / (rate * shape)
        time_s = 0.0
        left_s = rng.expovariate(1 / on_s)
        while True:
            gap_s = rng.gammavariate(shape, scale)
            while gap_s > left_s:  # the gap goes on when the source is on again
                gap_s -= left_s
                time_s += left_s + rng.expovariate(1 / off_s)
                left_s = rng.expovariate(1 / on_s)
            time_s += gap_s
            left_s -= gap_s
            yield time_s
