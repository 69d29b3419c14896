"""The plan of a step, or of a part of one, as arrays, and the sizes that it has."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.core.plan import StepPlan
from engine.kernels.layout import CHUNK_TILE_TOKENS, SPARE_TILES
from engine.kernels.shares import MAX_EXTRA_SHARES

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Reading:
    """Positions [first, end) of a row at which something is read that its request asks about its prompt."""

    index: int  # of the row in the plan
    row: int  # of the slot table
    first: int
    end: int
    token: int  # index of the first position among the T


@dataclass(frozen=True, slots=True)
class StepArrays:
    """A plan, or a part of one, of R rows and T tokens."""

    index: Int64Array  # [R] index of each row in the plan
    rows: Int64Array  # [R] slot-table rows
    starts: Int64Array  # [R]
    counts: Int64Array  # [R]
    samples: npt.NDArray[np.bool_]  # [R]
    token_ids: Int64Array  # [T] -1: the token that the row drew last, which only the device knows
    slots: Int64Array  # [T]
    # By index in the plan: the positions at which its step reads something.
    reads: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @staticmethod
    def of(plan: StepPlan) -> StepArrays:
        return StepArrays(
            np.arange(len(plan.rows)),
            np.array(plan.rows),
            np.array(plan.starts),
            np.array(plan.counts),
            np.array(plan.samples),
            np.array(plan.token_ids),
            np.array(plan.slots),
            plan.reads,
        )

    def sizes(self, num_wanted: int) -> StepSizes:
        """The sizes of the step, if the logits of `num_wanted` of its tokens are wanted."""
        longer = self.counts[self.counts > 1]
        num_tiles = int((-(-longer // CHUNK_TILE_TOKENS)).sum())
        num_rows = len(self.rows)
        return StepSizes(len(self.token_ids), num_rows, num_rows - len(longer), num_tiles, num_wanted)

    @property
    def ends(self) -> Int64Array:
        """[R] The number of computed tokens of each row's request after the step."""
        return self.starts + self.counts

    @property
    def last_tokens(self) -> Int64Array:
        """[R] The index of each row's last token among the T."""
        return np.cumsum(self.counts) - 1

    def halves(self) -> tuple[StepArrays, StepArrays]:
        """Splits the work into two successive steps of half the tokens each; T is at least 2. If a row is cut in two,
        only its second part samples."""
        cut = len(self.token_ids) // 2
        ends = np.cumsum(self.counts)
        last = int(np.searchsorted(ends, cut))  # the row that holds token number cut - 1
        kept = cut - int(ends[last] - self.counts[last])  # number of its tokens in the first half
        is_cut = kept < self.counts[last]
        first = self._part(np.s_[: last + 1], np.s_[:cut])
        second = self._part(np.s_[last if is_cut else last + 1 :], np.s_[cut:])
        if is_cut:
            first.counts[-1], first.samples[-1] = kept, False
            second.starts[0] += kept
            second.counts[0] -= kept
        return first, second

    def halves_by_row(self) -> tuple[StepArrays, StepArrays]:
        """The first half of the rows, and the others; R is at least 2."""
        cut = len(self.rows) // 2
        token = int(self.counts[:cut].sum())
        return self._part(np.s_[:cut], np.s_[:token]), self._part(np.s_[cut:], np.s_[token:])

    def _part(self, rows: slice, tokens: slice) -> StepArrays:
        """Copies some rows and their tokens."""
        return StepArrays(
            self.index[rows],
            self.rows[rows],
            self.starts[rows].copy(),
            self.counts[rows].copy(),
            self.samples[rows].copy(),
            self.token_ids[tokens],
            self.slots[tokens],
            self.reads,
        )

    def readings(self, failed: Container[int]) -> list[Reading]:
        """What is read in this part of the step, in the order of the tokens, without the rows that have failed."""
        if not self.reads:
            return []
        found: list[Reading] = []
        token = 0
        for index, row, start, count in zip(*self._row_lists(), strict=True):
            if index in self.reads and index not in failed:
                first, end = self.reads[index]
                first, end = max(first, start), min(end, start + count)
                if first < end:
                    found.append(Reading(index, row, first, end, token + first - start))
            token += count
        return found

    def _row_lists(self) -> tuple[list[int], list[int], list[int], list[int]]:
        return self.index.tolist(), self.rows.tolist(), self.starts.tolist(), self.counts.tolist()


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The sizes that determine the layout of a step's vector: T tokens, R rows, S of them with one token, N tiles or
    shares of tiles of the others, W tokens whose logits are wanted, how many more shares than S the contexts are
    divided into, and how many tiles are divided."""

    tokens: int
    rows: int
    singles: int
    tiles: int
    wanted: int
    extra_shares: int = 0
    tile_merges: int = 0

    @staticmethod
    def of_singles(num_rows: int) -> StepSizes:
        """The sizes of a step whose rows have one token each and all sample."""
        return StepSizes(num_rows, num_rows, num_rows, 0, num_rows, MAX_EXTRA_SHARES)

    @staticmethod
    def of_tokens(num_tokens: int, max_rows: int, max_wanted: int) -> StepSizes:
        """The sizes of steps of up to `num_tokens` tokens in rows of any lengths, a few of them of several tokens.

        There are more rows than a step can have, since those of padding write zeros to the tokens of padding.
        """
        rows = min(max_rows, num_tokens)
        tiles = num_tokens // CHUNK_TILE_TOKENS + SPARE_TILES
        spare = rows + CHUNK_TILE_TOKENS
        wanted = min(rows, max_wanted)
        return StepSizes(num_tokens, spare, spare, tiles, wanted, MAX_EXTRA_SHARES, tiles // 2)

    def holds(self, other: StepSizes) -> bool:
        """Whether a step of the sizes `other`, as `StepArrays.sizes` returns them, can be padded to these. All of its
        padding tokens belong to a row, and there is room for shares of its tiles."""
        spare_rows, spare_singles = self.rows - other.rows, self.singles - other.singles
        return (
            other.tiles <= self.tiles
            and other.wanted <= self.wanted
            and 0 <= self.tokens - other.tokens <= min(spare_rows, spare_singles)
            and (not self.tiles or min(spare_rows, spare_singles) > 0)
        )

    @property
    def shares(self) -> int:
        return self.singles + self.extra_shares

    @property
    def merges(self) -> int:
        """Each row with more than one share has at least one of the extra ones."""
        return min(self.singles, self.extra_shares)

    @property
    def total(self) -> int:
        """The length of the whole vector."""
        return sum(self.parts)

    @property
    def parts(self) -> list[int]:
        work = [4 * self.shares, 3 * self.merges, 3, 5 * self.tiles, 4 * self.tile_merges]
        return [self.tokens] * 4 + [4 * self.rows, *work, self.wanted, self.wanted]
