"""Arrival processes: endless, increasing times in seconds at which requests arrive."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class ArrivalProcess(Protocol):
    """A random process that generates arrival times."""

    def times(self, rng: random.Random, rate: float) -> Iterator[float]:
        """Yield arrival times; `rate` is their mean number per second."""
        ...


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma-distributed times between arrivals, with the coefficient of variation `cv`. 1 is a Poisson process; above
    that, requests arrive in bursts."""

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
    """Gamma-distributed times between arrivals while the source is on, and no arrivals while it is off.

    The durations of both states are exponentially distributed. On average, a cycle of the two takes `cycle_s`, and the
    source is on for the fraction `on_share` of it.
    """

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
            while gap_s > left_s:  # the gap continues when the source is on again
                gap_s -= left_s
                time_s += left_s + rng.expovariate(1 / off_s)
                left_s = rng.expovariate(1 / on_s)
            time_s += gap_s
            left_s -= gap_s
            yield time_s
