"""The cost model predicts how long a step takes. It learns from every step.

    T = c0 + c1*tokens + c2*rows + c3*sum(context of single-token rows) + c4*sum(chunk*context of longer rows)
      + c5*tokens copied to or from host memory

Steps of single-token rows only and all other steps have separate coefficients. These are fitted to relative errors by
least squares with exponential forgetting, and are never negative. A wrong model costs throughput, never correctness.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

FORGETTING = 0.998  # a step's weight halves in 350 steps
# Machines are shared: one that is slow now is slow a moment later. Multiplying the prediction by how much slower the
# latest steps were than the coefficients say halved the median error on two virtual cores (from 16% to 8%).
DRIFT_MEMORY = 0.3
# The factor of one step counts as at most this much larger or smaller than the running one: what goes beyond has other
# causes. A machine that stays nine times slower is followed within ten steps.
DRIFT_STEP = 2.0
DRIFT_LEAST, DRIFT_MOST = 1 / 32, 32.0
SMALL_STEP_TOKENS = 16  # a step of at most so many tokens consists mostly of its fixed cost
SOLVE_EVERY = 32  # steps between solutions after the first few hundred: coefficients change slowly
SWEEPS = 8
RIDGE = 1e-6  # keeps the coefficients of features that never occurred at 0
STORED_WEIGHT = 0.1  # weight of what an earlier process learned
ERROR_MEMORY = 1 / 64  # share of the newest step in the running error
RECENT_STEPS = 512
# Features of a typical step. Divided by these, all features have a similar size, and one ridge suits them all.
SINGLE_SCALES = (1.0, 64.0, 16384.0, 1024.0)
MIXED_SCALES = (1.0, 256.0, 64.0, 16384.0, 65536.0, 1024.0)


@dataclass(slots=True)
class StepShape:
    """The quantities that the time of a step depends on. `context`: number of tokens that single-token rows read;
    `chunk_context`: for each longer row, its tokens times the mean context that each of them reads; `copied`: number of
    tokens copied to or from the host."""

    tokens: int = 0
    rows: int = 0
    context: int = 0
    chunk_context: float = 0.0
    copied: int = 0

    def add_chunk(self, start: int, count: int) -> None:
        """Add a row that computes positions [start, start + count)."""
        self.tokens += count
        self.rows += 1
        if count == 1:
            self.context += start
        else:
            self.chunk_context += count * (start + count / 2)


class _Fit:
    """Regression on steps with coefficients that are not negative. Newer steps weigh more.

    It keeps the normal equations A theta = b and solves them by coordinate descent from the last solution. A step has
    the weight 1 / (predicted * actual time): errors count in proportion to the time, and a step that was held up by
    something else has no more influence than one that was twice as long.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        n = len(scales)
        self.scales = scales
        self.theta = [0.0] * n  # seconds per scaled feature
        self.a = [[RIDGE * (i == j) for j in range(n)] for i in range(n)]
        self.b = [0.0] * n
        self._num_learned = 0
        # Steps not yet in a and b: features, seconds, weight.
        self._new: list[tuple[Sequence[float], float, float]] = []

    def learn(self, features: Sequence[float], expected_s: float, elapsed_s: float) -> bool:
        """Learn from a step that the coefficients predict to take `expected_s`, 0 if there are none yet. True if the
        coefficients changed."""
        self._new.append((features, elapsed_s, 1.0 / ((expected_s or elapsed_s) * elapsed_s)))
        if len(self._new) < min(SOLVE_EVERY, self._num_learned // 8):
            return False
        self.sum_up()
        self._solve()
        return True

    def sum_up(self) -> None:
        """Bring the equations up to date, feature by feature, which is cheaper than step by step."""
        if not self._new:
            return
        steps, times, weights = zip(*self._new, strict=True)
        n = len(steps)
        self._new.clear()
        self._num_learned += n
        ages = range(n - 1, -1, -1)
        weights = tuple(weight * FORGETTING**age for weight, age in zip(weights, ages, strict=True))
        memory = FORGETTING**n
        columns = [
            [x / scale for x in column]
            for column, scale in zip(zip(*steps, strict=True), self.scales, strict=True)
        ]
        for i, column in enumerate(columns):
            weighted, row = list(map(mul, column, weights)), self.a[i]
            for j in range(i + 1):
                row[j] = row[j] * memory + sum(map(mul, weighted, columns[j]))
            self.b[i] = self.b[i] * memory + sum(map(mul, weighted, times))

    def _solve(self) -> None:
        theta, a = self.theta, self.a
        # Each row of the symmetric matrix: left of the diagonal, on it, and right of it.
        rows = [(row[:i], row[i] + RIDGE, [a[j][i] for j in range(i + 1, len(a))]) for i, row in enumerate(a)]
        for _ in range(SWEEPS):
            for i, (left, diagonal, right) in enumerate(rows):
                others = sum(map(mul, left, theta)) + sum(map(mul, right, theta[i + 1 :]))
                theta[i] = max(0.0, (self.b[i] - others) / diagonal)


class CostModel:
    """Predicts step times in seconds; `observe` refines the predictions. A new model predicts 0 until it has observed
    steps."""

    def __init__(self) -> None:
        self._single = _Fit(SINGLE_SCALES)
        self._mixed = _Fit(MIXED_SCALES)
        self.error_ratio = 0.0  # running mean of |predicted - actual| / actual
        self._errors: deque[float] = deque(maxlen=RECENT_STEPS)  # the same for each of the latest steps
        self._small_step_s = 0.0  # running mean of the time of steps with few tokens
        self.expected_s = 0.0  # what the latest step takes by the coefficients
        self._drift = 1.0  # how much slower the latest steps were than the coefficients say
        self._read_coefficients()

    def _read_coefficients(self) -> None:
        single = [t / s for t, s in zip(self._single.theta, self._single.scales, strict=True)]
        mixed = [t / s for t, s in zip(self._mixed.theta, self._mixed.scales, strict=True)]
        self._step_1, self._row_1, self._context_1, self._copy_1 = single
        self._step_n, self._token_n, self._row_n, self._context_n, self._chunk_n, self._copy_n = mixed

    def predict(self, shape: StepShape) -> float:
        """Seconds that a step of this shape takes."""
        return self._drift * self._by_coefficients(shape)

    def _by_coefficients(self, shape: StepShape) -> float:
        if shape.tokens == shape.rows:
            return (
                self._step_1
                + self._row_1 * shape.rows
                + self._context_1 * shape.context
                + self._copy_1 * shape.copied
            )
        return (
            self._step_n
            + self._token_n * shape.tokens
            + self._row_n * shape.rows
            + self._context_n * shape.context
            + self._chunk_n * shape.chunk_context
            + self._copy_n * shape.copied
        )

    @property
    def fixed_s(self) -> float:
        """Seconds that every step takes, however little it computes; never more than small steps have taken lately. The
        coefficients alone do not tell: where all steps are alike, the time of their rows may count as fixed. 0 before
        there was a small step."""
        return min(self._drift * max(self._step_1, self._step_n), self._small_step_s)

    def chunk_s(self, start: int, count: int) -> float:
        """Seconds that a step takes if it computes positions [start, start + count) of one request and nothing else."""
        shape = StepShape()
        shape.add_chunk(start, count)
        return self.predict(shape)

    def chunk_tokens(self, shape: StepShape, limit_s: float, start: int, at_most: int) -> int:
        """How many tokens from position `start` on, up to `at_most`, a step of this shape can also compute if it may
        take `limit_s` in all."""
        base_s = (
            self._step_n
            + self._token_n * shape.tokens
            + self._row_n * (shape.rows + 1)
            + self._context_n * shape.context
            + self._chunk_n * shape.chunk_context
            + self._copy_n * shape.copied
        )
        left_s = limit_s / self._drift - base_s
        if left_s < 0:
            return 0
        # count * (token + chunk * start) + count^2 * chunk / 2 <= left
        linear, half_square = self._token_n + self._chunk_n * start, self._chunk_n / 2
        if half_square * at_most * at_most + linear * at_most <= left_s:
            return at_most
        if half_square <= 1e-18:
            return int(left_s / linear)
        root = math.sqrt(linear * linear + 4 * half_square * left_s)
        return min(at_most, int((root - linear) / (2 * half_square)))

    def single_rows(self, shape: StepShape, limit_s: float, contexts: Sequence[int]) -> int:
        """How many of these single-token rows, in their order, a step of this shape can also compute if it may take
        `limit_s` in all."""
        is_single = shape.tokens == shape.rows
        row_s = self._row_1 if is_single else self._row_n + self._token_n
        context_s = self._context_1 if is_single else self._context_n
        left_s = limit_s / self._drift - self._by_coefficients(shape)
        if row_s * len(contexts) + context_s * sum(contexts) <= left_s:
            return len(contexts)
        for i, context in enumerate(contexts):
            left_s -= row_s + context_s * context
            if left_s < 0:
                return i
        return len(contexts)

    def is_copy_cheaper(self, start: int, count: int) -> bool:
        """Whether copying `count` tokens from position `start` on back from the host is faster than computing them."""
        return self._copy_n <= self._token_n + self._chunk_n * (start + count / 2)

    def observe(self, shape: StepShape, elapsed_s: float) -> None:
        """Learn that a step of this shape took `elapsed_s`."""
        if elapsed_s <= 0 or not shape.rows:
            return
        self.expected_s = expected_s = self._by_coefficients(shape)
        ratio = abs(self._drift * expected_s - elapsed_s) / elapsed_s
        self.error_ratio += ERROR_MEMORY * (min(ratio, 1.0) - self.error_ratio)
        self._errors.append(ratio)
        if expected_s > 0:
            drift = self._drift
            factor = min(DRIFT_STEP * drift, max(drift / DRIFT_STEP, elapsed_s / expected_s))
            drift += DRIFT_MEMORY * (factor - drift)
            self._drift = min(DRIFT_MOST, max(DRIFT_LEAST, drift))
        if shape.tokens <= SMALL_STEP_TOKENS:
            share = DRIFT_MEMORY if self._small_step_s else 1.0
            self._small_step_s += share * (elapsed_s - self._small_step_s)
        if shape.tokens == shape.rows:
            changed = self._single.learn((1, shape.rows, shape.context, shape.copied), expected_s, elapsed_s)
        else:
            features = (1, shape.tokens, shape.rows, shape.context, shape.chunk_context, shape.copied)
            changed = self._mixed.learn(features, expected_s, elapsed_s)
        if changed:
            self._read_coefficients()

    @property
    def median_error(self) -> float:
        """Median of |predicted - actual| / actual over the latest steps; 0 before there are any."""
        ordered = sorted(self._errors)
        return ordered[len(ordered) // 2] if ordered else 0.0

    def learned(self) -> dict[str, dict[str, list[float]]]:
        """What the model has learned, as data that can be stored."""
        fits = {"single": self._single, "mixed": self._mixed}
        for fit in fits.values():
            fit.sum_up()
        return {
            name: {"theta": list(fit.theta), "a": [x for row in fit.a for x in row], "b": list(fit.b)}
            for name, fit in fits.items()
        }

    @staticmethod
    def from_learned(stored: dict[str, dict[str, list[float]]]) -> CostModel:
        """A model that continues from the data of `learned`. Raises ValueError, KeyError or TypeError for other
        data."""
        model = CostModel()
        for fit, values in ((model._single, stored["single"]), (model._mixed, stored["mixed"])):
            n = len(fit.scales)
            theta, a, b = values["theta"], values["a"], values["b"]
            if (len(theta), len(a), len(b)) != (n, n * n, n) or not all(map(math.isfinite, (*theta, *a, *b))):
                raise ValueError(f"expected {n} finite coefficients with their equations, got {theta}")
            fit.theta = list(theta)
            fit.a = [[STORED_WEIGHT * x for x in a[i * n : (i + 1) * n]] for i in range(n)]
            fit.b = [STORED_WEIGHT * x for x in b]
        model._read_coefficients()
        return model
