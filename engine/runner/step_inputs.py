"""The plan of a step as arrays, and as one vector of numbers that goes to the device in a single copy."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.core.plan import StepPlan
from engine.kernels.layout import (
    CHUNK_TILE_TOKENS,
    IntArray,
    StepLayout,
    host_rows,
    single_shares,
    tile_indices,
)
from engine.kernels.shares import MAX_EXTRA_SHARES

Int64Array = npt.NDArray[np.int64]

# A row of several tokens has a last tile that may be partial: the number of such rows that a padded step may have.
SPARE_TILES = 16


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
    """The sizes that determine the layout of a step's vector: T tokens, R rows, S of them with one token, N tiles of
    the others, W tokens whose logits are wanted, and how many more shares than S the contexts are divided into."""

    tokens: int
    rows: int
    singles: int
    tiles: int
    wanted: int
    extra_shares: int = 0

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
        return StepSizes(num_tokens, spare, spare, tiles, min(rows, max_wanted), MAX_EXTRA_SHARES)

    def holds(self, other: StepSizes) -> bool:
        """Whether a step of the sizes `other` can be padded to these. All of its padding tokens belong to a row."""
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
        return sum(self._parts)

    @property
    def _parts(self) -> list[int]:
        work = [4 * self.shares, 3 * self.merges, 2, 2 * self.tiles]
        return [self.tokens] * 4 + [4 * self.rows, *work, self.wanted, self.wanted]


@dataclass(frozen=True, slots=True)
class StepTensors:
    """A step on the device: views of one int64 vector."""

    token_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    token_rows: torch.Tensor  # [T] slot-table rows
    wanted: torch.Tensor  # [W] indices into T
    wanted_rows: torch.Tensor  # [W] slot-table rows
    layout: StepLayout

    @staticmethod
    def of(vector: torch.Tensor, sizes: StepSizes, slot_table: torch.Tensor, host: IntArray) -> StepTensors:
        """Views of `vector` [sizes.total], which is laid out as by `pack`. The host decides by `host` [4, R]."""
        (
            token_ids,
            positions,
            slots,
            token_rows,
            rows,
            shares,
            merges,
            num_work,
            tiles,
            wanted,
            wanted_rows,
        ) = torch.split(vector, sizes._parts)
        layout = StepLayout(
            slot_table,
            slots,
            host,
            rows.view(4, -1),
            shares.view(-1, 4),
            merges.view(-1, 3),
            num_work,
            tiles.view(-1, 2),
        )
        return StepTensors(token_ids, positions, token_rows, wanted, wanted_rows, layout)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step on the host, ready to be sent to the device."""

    vector: torch.Tensor  # [sizes.total] int64, pinned if a GPU reads it
    sizes: StepSizes
    host: IntArray  # [4, R]
    num_wanted: int  # without padding


def pack(
    step: StepArrays,
    drawing: npt.NDArray[Any],
    padding_row: int,
    *,
    pinned: bool,
    padded: StepSizes | None = None,
    read: Int64Array | None = None,
    num_programs: int = 0,
) -> StepInputs:
    """Packs a step that wants the output of the rows `drawing` (indices into R). `read` are other tokens (indices into
    T) whose output is wanted. All that are wanted are then in the order of the tokens.

    With `padded`, which holds the step, it is padded to those sizes. Padding belongs to slot-table row `padding_row`,
    which no request has. It is stored nowhere, and kernels skip it. `num_programs` is what `share_contexts` takes.
    """
    host = host_rows(step.rows, step.starts, step.counts)
    work, tiles = single_shares(host, num_programs), tile_indices(host)
    wanted_tokens, rows_of_wanted = step.last_tokens[drawing], step.rows[drawing]
    if read is not None:
        wanted_tokens = np.concatenate([wanted_tokens, read])
        order = np.argsort(wanted_tokens)
        wanted_tokens = wanted_tokens[order]
        rows_of_wanted = np.concatenate([rows_of_wanted, np.full(len(read), padding_row)])[order]
    num_tokens, num_rows, num_wanted = len(step.token_ids), len(step.rows), len(wanted_tokens)
    num_shares, num_merges, num_singles = len(work.shares), len(work.merges), int((step.counts == 1).sum())
    exact = StepSizes(num_tokens, num_rows, num_singles, len(tiles), num_wanted, num_shares - num_singles)
    sizes = exact if padded is None else padded
    vector = torch.empty(sizes.total, dtype=torch.int64, pin_memory=pinned)
    parts = np.split(vector.numpy(), np.cumsum(sizes._parts)[:-1])
    (
        token_ids,
        positions,
        slots,
        token_rows,
        rows,
        shares,
        merges,
        num_work,
        tile_part,
        wanted,
        wanted_rows,
    ) = parts
    rows = rows.reshape(4, -1)
    shares, merges, tile_part = shares.reshape(-1, 4), merges.reshape(-1, 3), tile_part.reshape(-1, 2)
    num_work[:] = num_shares, num_merges
    if sizes != exact:
        token_ids[num_tokens:], positions[num_tokens:], slots[num_tokens:] = 0, 0, -1
        token_rows[num_tokens:] = wanted_rows[num_wanted:] = padding_row
        rows[0, num_rows:], rows[1:3, num_rows:] = -1, 0
        rows[3, num_rows:] = num_tokens + np.arange(sizes.rows - num_rows)
        # A share for each token of padding, as far as there are rows.
        zeroed = np.arange(num_rows, min(sizes.rows, num_rows + sizes.tokens - num_tokens))
        shares[num_shares:], merges[num_merges:] = (0, 0, 1, 0), 0
        shares[num_shares : num_shares + len(zeroed), 0] = zeroed
        num_work[0] += len(zeroed)
        tile_part[len(tiles) :] = sizes.rows - 1, 0
        wanted[num_wanted:] = sizes.tokens - 1
    token_ids[:num_tokens] = step.token_ids
    positions[:num_tokens] = np.arange(num_tokens) + np.repeat(step.starts - host[3], step.counts)
    slots[:num_tokens] = step.slots
    token_rows[:num_tokens] = np.repeat(step.rows, step.counts)
    rows[:, :num_rows] = host
    shares[:num_shares], merges[:num_merges] = work.shares, work.merges
    tile_part[: len(tiles)] = tiles
    wanted[:num_wanted] = wanted_tokens
    wanted_rows[:num_wanted] = rows_of_wanted
    return StepInputs(vector, sizes, host, num_wanted)
