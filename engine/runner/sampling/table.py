"""The sampling parameters of each slot-table row, as arrays, and the token counts that penalties need."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.core.plan import RowStart

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

# A temperature below this counts as 0, which takes the likeliest token: at 1e-5 any other token would need a logit
# within a ten-thousandth of the largest, and much below that float32 cannot hold the quotients.
GREEDY_TEMPERATURE = 1e-5

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class LogitChanges:
    """Changes to single logits as flat arrays: entry i is for logits[index[i], token_ids[i]]. No pair occurs twice."""

    index: IntArray
    token_ids: IntArray
    values: FloatArray

    def positions(self, vocab_size: int) -> IntArray:
        """The positions of the entries in the flattened logits."""
        return self.index * vocab_size + self.token_ids


@dataclass(frozen=True, slots=True)
class Penalties:
    """Penalties as flat arrays, like `LogitChanges`.

    A logit above 0 is divided by `repetition[i]`, any other is multiplied by it; then `subtract[i]` is subtracted.
    """

    index: IntArray
    token_ids: IntArray
    repetition: FloatArray
    subtract: FloatArray
    late: LatePenalties | None = None

    def positions(self, vocab_size: int) -> IntArray:
        """The positions of the entries in the flattened logits."""
        return self.index * vocab_size + self.token_ids


@dataclass(frozen=True, slots=True)
class LatePenalties:
    """What p rows need besides their `Penalties`, since they drew one more token, which only the device knows."""

    index: IntArray  # [p] of the rows in the logits
    rows: IntArray  # [p] of the slot table
    repetition: FloatArray  # [p] for that token, if it is among none of the row's entries
    subtract: FloatArray  # [p] likewise
    owner: IntArray  # for each entry: the index of its row among the p, or p if it is none of them
    added: FloatArray  # for each entry: what is subtracted in addition if it is that token


class TokenCounts:
    """The distinct tokens of a sequence, and how often each occurs in its output (0: only in the prompt)."""

    __slots__ = ("_counts", "_index", "_token_ids")

    def __init__(self, prompt: list[int], output: list[int]) -> None:
        self._index: dict[int, int] = {}
        self._token_ids = np.empty(64, dtype=np.int64)
        self._counts = np.empty(64, dtype=np.float32)
        for token_id in prompt:
            self._add(token_id, 0)
        for token_id in output:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Counts one more output token."""
        self._add(token_id, 1)

    def _add(self, token_id: int, times: int) -> None:
        index = self._index.get(token_id)
        if index is not None:
            self._counts[index] += times
            return
        index = self._index[token_id] = len(self._index)
        if index == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.empty_like(self._token_ids)])
            self._counts = np.concatenate([self._counts, np.empty_like(self._counts)])
        self._token_ids[index] = token_id
        self._counts[index] = times

    @property
    def token_ids(self) -> IntArray:
        return self._token_ids[: len(self._index)]

    @property
    def output_counts(self) -> FloatArray:
        return self._counts[: len(self._index)]


class SamplingTable:
    """The parameters of the requests in `num_rows` slot-table rows. Arguments named `rows` are arrays of row
    numbers."""

    def __init__(self, num_rows: int, eos_token_ids: frozenset[int], seed: int | None = None) -> None:
        self._eos_token_ids = eos_token_ids
        self._random = np.random.default_rng(seed)
        # One array behind four names, so that the values for a step are picked with one index.
        self._draw_parameters = np.zeros((4, num_rows))
        self.temperature, self.top_p, self.top_k, self.min_p = self._draw_parameters
        self.temperature[:] = self.top_p[:] = 1
        self.repetition = np.ones(num_rows, dtype=np.float32)
        self.presence = np.zeros(num_rows, dtype=np.float32)
        self.frequency = np.zeros(num_rows, dtype=np.float32)
        self.min_tokens = np.zeros(num_rows, dtype=np.int64)
        self.num_logprobs = np.full(num_rows, -1, dtype=np.int64)  # -1: not requested
        self.seed = np.zeros(num_rows, dtype=np.uint64)
        self.is_penalized = np.zeros(num_rows, dtype=bool)
        self.is_biased = np.zeros(num_rows, dtype=bool)
        self._counts: dict[int, TokenCounts] = {}
        self._biases: dict[int, tuple[IntArray, FloatArray]] = {}
        self._stop_ids: dict[int, IntArray] = {}

    def start(self, start: RowStart) -> None:
        """Assigns row `start.row` to this request, and forgets the one that held the row before."""
        row, sampling = start.row, start.sampling
        is_greedy = sampling.temperature < GREEDY_TEMPERATURE
        self.temperature[row] = 0.0 if is_greedy else sampling.temperature
        self.top_p[row] = sampling.top_p
        self.top_k[row] = sampling.top_k
        self.min_p[row] = sampling.min_p
        self.repetition[row] = sampling.repetition_penalty
        self.presence[row] = sampling.presence_penalty
        self.frequency[row] = sampling.frequency_penalty
        self.min_tokens[row] = sampling.min_tokens
        self.num_logprobs[row] = -1 if sampling.logprobs is None else sampling.logprobs
        drawn = int(self._random.integers(2**63)) if sampling.seed is None else sampling.seed
        self.seed[row] = drawn & 0xFFFF_FFFF_FFFF_FFFF
        penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        self.is_penalized[row] = penalties != (1, 0, 0)
        self._counts.pop(row, None)
        if self.is_penalized[row]:
            prompt = start.token_ids[: start.num_prompt_tokens]
            self._counts[row] = TokenCounts(prompt, start.token_ids[start.num_prompt_tokens :])
        self.is_biased[row] = bool(sampling.logit_bias)
        self._biases.pop(row, None)
        if sampling.logit_bias:
            bias = dict(sampling.logit_bias)
            self._biases[row] = (
                np.fromiter(bias.keys(), dtype=np.int64),
                np.fromiter(bias.values(), dtype=np.float32),
            )
        self._stop_ids.pop(row, None)
        if sampling.min_tokens:
            eos = frozenset() if sampling.ignore_eos else self._eos_token_ids
            self._stop_ids[row] = np.array(sorted(eos.union(sampling.stop_token_ids)), dtype=np.int64)

    def token_counts(self, row: int) -> TokenCounts:
        """The token counts of a row that has penalties."""
        return self._counts[row]

    def biases(self, rows: IntArray) -> LogitChanges | None:
        """The logit_bias of these rows, to be added to their logits."""
        parts = [(i, *self._biases[row]) for i, row in enumerate(rows.tolist()) if row in self._biases]
        return _flatten(parts)

    def banned(self, rows: IntArray, num_outputs: IntArray) -> LogitChanges | None:
        """The stop tokens of the rows that have not reached their min_tokens, with -inf as their logits."""
        parts = []
        for i in np.flatnonzero(num_outputs < self.min_tokens[rows]).tolist():
            token_ids = self._stop_ids[int(rows[i])]
            parts.append((i, token_ids, np.full(len(token_ids), -np.inf, dtype=np.float32)))
        return _flatten(parts)

    def penalties(self, rows: IntArray, uncounted: Callable[[], Collection[TokenCounts]]) -> Penalties | None:
        """The penalties of these rows, or None if no row has any. `uncounted` returns the counts to which a token will
        be added that is not known so far."""
        picked = np.flatnonzero(self.is_penalized[rows])
        if not len(picked):
            return None
        counts = [self._counts[row] for row in rows[picked].tolist()]
        lengths = [len(count.token_ids) for count in counts]
        index = np.repeat(picked, lengths)
        by_entry = rows[index]
        output_counts = np.concatenate([count.output_counts for count in counts])
        frequency, presence = self.frequency[by_entry], self.presence[by_entry]
        waiting = uncounted()
        is_late = np.array([count in waiting for count in counts])
        late = None
        if is_late.any():
            late_index = picked[is_late]
            late_rows = rows[late_index]
            owner = np.where(is_late, np.cumsum(is_late) - 1, len(late_index))
            late = LatePenalties(
                late_index,
                late_rows,
                self.repetition[late_rows],
                self.frequency[late_rows] + self.presence[late_rows],
                np.repeat(owner, lengths),
                frequency + presence * (output_counts == 0),
            )
        return Penalties(
            index,
            np.concatenate([count.token_ids for count in counts]),
            self.repetition[by_entry],
            frequency * output_counts + presence * (output_counts > 0),
            late,
        )

    def draw_parameters(self, rows: IntArray, num_outputs: IntArray) -> npt.NDArray[np.float64]:
        """[5, n] The temperature, top_p, top_k (0: off), min_p and uniform number of each row."""
        return np.concatenate([self._draw_parameters[:, rows], self.uniforms(rows, num_outputs)[None]])

    def uniforms(self, rows: IntArray, num_outputs: IntArray) -> npt.NDArray[np.float64]:
        """[n] One number in [0, 1) per row: a hash of the row's seed and its position in the output, and of nothing
        else. So a request with a seed draws the same tokens whatever runs beside it, and after a preemption."""
        mixed = _splitmix(_splitmix(self.seed[rows]) + num_outputs.astype(np.uint64) * _GOLDEN)
        # 52 bits, so that u * total < total in float64 for every total.
        return (mixed >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _flatten(parts: list[tuple[int, Any, Any]]) -> LogitChanges | None:
    if not parts:
        return None
    index, token_ids, values = zip(*parts, strict=True)
    lengths = [len(part) for part in token_ids]
    return LogitChanges(
        np.repeat(np.array(index), lengths), np.concatenate(token_ids), np.concatenate(values)
    )


def _splitmix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea, Flood 2014); arithmetic is modulo 2**64."""
    z = x + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
