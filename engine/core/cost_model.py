"""How long a step takes, learned from the steps there were.

    T = c0 + c1*tokens + c2*rows + c3*sum(context of single-token rows) + c4*sum(chunk*context of longer rows)
      + c5*tokens copied to or from host memory

Two regimes have coefficients of their own: steps of single-token rows alone, and all others. They are fitted to
relative errors by recursive least squares with forgetting (Haykin, Adaptive Filter Theory, ch. 10), kept from going
negative. A wrong model costs throughput, never correctness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FORGETTING = 0.998  # a step's weight halves in 350 steps
# A step that took this much longer or shorter than predicted teaches no more than one at the limit: something else ran.
MAX_SURPRISE_RATIO = 0.5
ERROR_MEMORY = 1 / 64  # share of the newest step in the running error
# Feature values of a middling step: divided by them, coefficients are of one size, and one prior suits all.
SINGLE_SCALES = (1.0, 64.0, 16384.0, 1024.0)
MIXED_SCALES = (1.0, 256.0, 64.0, 16384.0, 65536.0, 1024.0)


@dataclass(slots=True)
class StepShape:
    """What a step's time depends on. `context`: tokens read by single-token rows; `chunk_context`: for each longer
    row, its tokens times the mean context each of them reads; `copied`: tokens moved to or from the host."""

    tokens: int = 0
    rows: int = 0
    context: int = 0
    chunk_context: float = 0.0
    copied: int = 0

    def add_chunk(self, start: int, count: int) -> None:
        """One more row that computes positions [start, start + count)."""
        self.tokens += count
        self.rows += 1
        if count == 1:
            self.context += start
        else:
            self.chunk_context += count * (start + count / 2)


class _Fit:
    """Weighted linear regression, updated one observation at a time."""

    def __init__(self, scales: Sequence[float]) -> None:
        self.scales = scales
        self.theta = [0.0] * len(scales)  # seconds per scaled feature
        # Inverse of the information gathered: how far each coefficient may still move. 1 s a unit is no opinion at all.
        self.spread = [[float(i == j) for j in range(len(scales))] for i in range(len(scales))]
        self.num_seen = 0

    def predict(self, features: Sequence[float]) -> float:
        return sum(t * f / s for t, f, s in zip(self.theta, features, self.scales, strict=True))

    def learn(self, features: Sequence[float], elapsed_s: float, forgetting: float) -> None:
        scaled = [f / (s * elapsed_s) for f, s in zip(features, self.scales, strict=True)]
        gain = [sum(p * x for p, x in zip(row, scaled, strict=True)) for row in self.spread]
        error = 1.0 - sum(t * x for t, x in zip(self.theta, scaled, strict=True))
        if self.num_seen > len(scaled):
            error = max(-MAX_SURPRISE_RATIO, min(MAX_SURPRISE_RATIO, error))
        self.num_seen += 1
        denominator = forgetting + sum(x * g for x, g in zip(scaled, gain, strict=True))
        self.theta = [max(0.0, t + g * error / denominator) for t, g in zip(self.theta, gain, strict=True)]
        # Without new information there is nothing to forget for: the spread never passes where it began.
        widen = 1.0 / forgetting if sum(row[i] for i, row in enumerate(self.spread)) < len(scaled) else 1.0
        for row, g in zip(self.spread, gain, strict=True):
            share = g / denominator
            for j, other in enumerate(gain):
                row[j] = (row[j] - share * other) * widen


class CostModel:
    """Predicts step times in seconds; `observe` refines it. A new one predicts 0 until it has seen steps."""

    def __init__(self) -> None:
        self._single = _Fit(SINGLE_SCALES)
        self._mixed = _Fit(MIXED_SCALES)
        self.error_ratio = 0.0  # running mean of |predicted - actual| / actual
        self._read_coefficients()

    def _read_coefficients(self) -> None:
        single = [t / s for t, s in zip(self._single.theta, self._single.scales, strict=True)]
        mixed = [t / s for t, s in zip(self._mixed.theta, self._mixed.scales, strict=True)]
        self._step_1, self._row_1, self._context_1, self._copy_1 = single
        self._step_n, self._token_n, self._row_n, self._context_n, self._chunk_n, self._copy_n = mixed

    def predict(self, shape: StepShape) -> float:
        """Seconds a step of this shape takes."""
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

    def chunk_s(self, start: int, count: int) -> float:
        """Seconds a step takes that computes one request's positions [start, start + count) and nothing else."""
        shape = StepShape()
        shape.add_chunk(start, count)
        return self.predict(shape)

    def chunk_tokens(self, shape: StepShape, limit_s: float, start: int, at_most: int) -> int:
        """How many tokens from position `start` a step of this shape can compute besides, in `limit_s` altogether."""
        base_s = (
            self._step_n
            + self._token_n * shape.tokens
            + self._row_n * (shape.rows + 1)
            + self._context_n * shape.context
            + self._chunk_n * shape.chunk_context
            + self._copy_n * shape.copied
        )
        left_s = limit_s - base_s
        if left_s <= 0:
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
        """How many of these rows, one token each, a step of this shape can compute besides, in `limit_s`."""
        is_single = shape.tokens == shape.rows
        row_s = self._row_1 if is_single else self._row_n + self._token_n
        context_s = self._context_1 if is_single else self._context_n
        left_s = limit_s - self.predict(shape) - (self._step_1 if not shape.rows else 0.0)
        if row_s * len(contexts) + context_s * sum(contexts) <= left_s:
            return len(contexts)
        for i, context in enumerate(contexts):
            left_s -= row_s + context_s * context
            if left_s < 0:
                return i
        return len(contexts)

    def is_copy_cheaper(self, start: int, count: int) -> bool:
        """Whether tokens come back sooner from host memory than by computing them again."""
        return self._copy_n <= self._token_n + self._chunk_n * (start + count / 2)

    def observe(self, shape: StepShape, elapsed_s: float, forgetting: float = FORGETTING) -> None:
        """A step of this shape took so long."""
        if elapsed_s <= 0 or not shape.rows:
            return
        ratio = abs(self.predict(shape) - elapsed_s) / elapsed_s
        self.error_ratio += ERROR_MEMORY * (min(ratio, 1.0) - self.error_ratio)
        if shape.tokens == shape.rows:
            self._single.learn((1, shape.rows, shape.context, shape.copied), elapsed_s, forgetting)
        else:
            features = (1, shape.tokens, shape.rows, shape.context, shape.chunk_context, shape.copied)
            self._mixed.learn(features, elapsed_s, forgetting)
        self._read_coefficients()

    def coefficients(self) -> dict[str, list[float]]:
        """What was learned, as data that can be stored."""
        return {"single": list(self._single.theta), "mixed": list(self._mixed.theta)}

    @staticmethod
    def from_coefficients(stored: dict[str, list[float]]) -> CostModel:
        """A model that goes on where another stopped. Raises ValueError or KeyError for data that is none."""
        model = CostModel()
        for fit, theta in ((model._single, stored["single"]), (model._mixed, stored["mixed"])):
            if len(theta) != len(fit.theta) or not all(math.isfinite(t) and t >= 0 for t in theta):
                raise ValueError(f"{theta} are no {len(fit.theta)} coefficients")
            fit.theta = list(theta)
            # As sure as a few dozen steps would have made it: this machine's day may differ from the stored one.
            fit.spread = [[1e-3 * p for p in row] for row in fit.spread]
            fit.num_seen = len(theta) + 1
        model._read_coefficients()
        return model
