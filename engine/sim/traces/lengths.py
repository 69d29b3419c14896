"""Distributions of the lengths of prompts and outputs, in tokens."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Protocol


class Lengths(Protocol):
    """A distribution of token counts from 1 to `most`."""

    @property
    def most(self) -> int: ...

    def draw(self, rng: random.Random) -> int: ...


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A lognormal distribution, given by its mean and its coefficient of variation (standard deviation / mean).

    Draws are rounded and clipped to [`least`, `most`].
    """

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
    """A uniform distribution of the integers from `least` to `most`."""

    least: int
    most: int

    def draw(self, rng: random.Random) -> int:
        return self.least + int(rng.random() * (self.most - self.least + 1))


# The percentiles that are published. Below the first of them, the inverse CDF falls to one token.
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_SHARES = (0.0, *(p / 100 for p in PERCENTILES))


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A distribution given by its values at `PERCENTILES`, between which the inverse CDF is interpolated linearly.

    The lengths beyond the 99th percentile are not known, so no longer ones are drawn.
    """

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
