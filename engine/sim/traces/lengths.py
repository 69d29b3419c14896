"""How long prompts and outputs are: distributions of token counts."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Protocol


class Lengths(Protocol):
    """Token counts from 1 to `most`."""

    @property
    def most(self) -> int: ...

    def draw(self, rng: random.Random) -> int: ...


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Given by its mean and coefficient of variation (standard deviation over mean), rounded and cut to
    [`least`, `most`]."""

    mean: float
    cv: float
    least: int
    most: int
    _mu: float = field(init=False, repr=False)
    _sigma: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        variance = math.log(1 + self.cv**2)
        object.__setattr__(self, "_mu", math.log(self.mean) - variance / 2)
        object.__setattr__(self, "_sigma", math.sqrt(variance))

    def draw(self, rng: random.Random) -> int:
        length = round(math.exp(rng.gauss(self._mu, self._sigma)))
        return self.least if length < self.least else min(length, self.most)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every whole number from `least` to `most`, equally likely."""

    least: int
    most: int

    def draw(self, rng: random.Random) -> int:
        return self.least + int(rng.random() * (self.most - self.least + 1))


# Of the published figures; below the first of them the inverse CDF falls to one token.
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_SHARES = (0.0, *(p / 100 for p in PERCENTILES))


@dataclass(frozen=True, slots=True)
class Percentiles:
    """By inverse CDF, straight between the values at `PERCENTILES`. What a trace has beyond its 99th percentile is not
    known: nothing longer than that is drawn."""

    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(PERCENTILES) or list(self.values) != sorted(self.values):
            raise ValueError(
                f"{self.values} are not {len(PERCENTILES)} token counts at percentiles {PERCENTILES}"
            )

    @property
    def most(self) -> int:
        return self.values[-1]

    def draw(self, rng: random.Random) -> int:
        share = rng.random()
        i = bisect_right(_SHARES, share)
        if i == len(_SHARES):
            return self.values[-1]
        low, high = (1 if i == 1 else self.values[i - 2]), self.values[i - 1]
        return round(low + (high - low) * (share - _SHARES[i - 1]) / (_SHARES[i] - _SHARES[i - 1]))
