"""Where the tokens of one step lie in the batch and in the caches: the layout that every attention backend reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.kernels.shares import Shares, share_contexts, share_tiles

IntArray = npt.NDArray[np.int32]

# The number of queries of one row that a device kernel computes together, which fills a matrix unit's tile.
CHUNK_TILE_TOKENS = 64
# The list of tiles has room for this many more than whole tiles: a row's last one may be partial, and tiles whose
# contexts are divided are listed more than once.
SPARE_TILES = 16


@dataclass(frozen=True, eq=False)
class StepLayout:
    """T packed tokens of R rows. Row i computes positions [starts[i], starts[i] + counts[i]) of the sequence in
    slot-table row `rows[i]`; its tokens are [offsets[i], offsets[i] + counts[i]) of the packed ones:

        packed   | row 0: counts[0] tokens | row 1 | row 2: counts[2] tokens        |
                 0                offsets[1]       offsets[2]                       T

    `slot_table` already contains the step's own slots, so a query at position p reads positions [0, p] there. `host`
    and `device` hold the same numbers: launches are decided with the former, kernels read the latter.

    A batch may be padded to a fixed size. Padding has row -1 and count 0 in `device`, and slot -1 in `slot_mapping`.
    Nothing is stored for it. Its output is undefined, and zero for the tokens of rows that `shares` lists.
    """

    slot_table: torch.Tensor  # [max_rows, max_model_len] int32, on the device
    slot_mapping: torch.Tensor  # [T] int64, on the device: the slot of each token's K and V
    host: IntArray  # [4, R] rows, starts, counts, offsets
    device: torch.Tensor  # [4, R] int64, on the device
    shares: torch.Tensor  # [W, 4] int64, on the device: `Shares.shares`, of the rows that compute one token
    merges: torch.Tensor  # [M, 3] int64, on the device: `Shares.merges`
    # [3] int64, on the device: how many of the W, the M and the K there are; the others are padding
    num_work: torch.Tensor
    tiles: torch.Tensor  # [N, 5] int64, on the device: `Shares.shares`, of tiles of the other rows
    tile_merges: torch.Tensor  # [K, 4] int64, on the device: `Shares.merges`
    # values that a backend shares among all layers of the step
    scratch: dict[Any, Any] = field(default_factory=dict)

    @staticmethod
    def build(
        slot_table: torch.Tensor,
        slot_mapping: torch.Tensor,
        rows: npt.ArrayLike,
        starts: npt.ArrayLike,
        counts: npt.ArrayLike,
        *,
        num_programs: int = 0,
        num_tile_programs: int = 0,
    ) -> StepLayout:
        """The layout of rows that are packed one after another, in the given order, for a GPU that reads so many shares
        of contexts, and computes so many tiles, at once."""
        host = host_rows(rows, starts, counts)
        work, tile_work = single_shares(host, num_programs), tile_shares(host, num_tile_programs)
        num_work = np.array([len(work.shares), len(work.merges), len(tile_work.merges)])
        parts: list[npt.NDArray[Any]] = [
            host.ravel(), work.shares.ravel(), work.merges.ravel(), num_work, tile_work.shares.ravel(),
            tile_work.merges.ravel(),
        ]  # fmt: skip
        packed = torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(slot_table.device)
        on_device = torch.split(packed, [len(part) for part in parts])
        return StepLayout.of_parts(slot_table, slot_mapping, host, *on_device)

    @staticmethod
    def of_parts(
        slot_table: torch.Tensor,
        slot_mapping: torch.Tensor,
        host: IntArray,
        rows: torch.Tensor,
        shares: torch.Tensor,
        merges: torch.Tensor,
        num_work: torch.Tensor,
        tiles: torch.Tensor,
        tile_merges: torch.Tensor,
    ) -> StepLayout:
        """The layout whose parts on the device are these, each without its shape."""
        return StepLayout(
            slot_table,
            slot_mapping,
            host,
            rows.view(4, -1),
            shares.view(-1, 4),
            merges.view(-1, 3),
            num_work,
            tiles.view(-1, 5),
            tile_merges.view(-1, 4),
        )

    @cached_property
    def single_token_rows(self) -> IntArray:
        """[5, S] row, start, count, offset and end (start + 1) of the rows that compute one token."""
        picked = self.host[:, self.host[2] == 1]
        return np.ascontiguousarray(np.concatenate([picked, picked[1:2] + 1]))

    @cached_property
    def longer_rows(self) -> IntArray:
        """[4, C] row, start, count and offset of the rows that compute more than one token."""
        return np.ascontiguousarray(self.host[:, self.host[2] > 1])


def host_rows(rows: npt.ArrayLike, starts: npt.ArrayLike, counts: npt.ArrayLike) -> IntArray:
    """`StepLayout.host` of rows that are packed one after another."""
    host = np.empty((4, len(np.asarray(rows))), dtype=np.int32)
    host[0], host[1], host[2] = rows, starts, counts
    host[3] = np.cumsum(host[2]) - host[2]
    return host


def single_shares(host: IntArray, num_programs: int) -> Shares:
    """The shares of the rows that compute one token: see `share_contexts`."""
    singles = np.flatnonzero(host[2] == 1)
    return share_contexts(singles, host[1][singles].astype(np.int64) + 1, num_programs)


def tile_shares(host: IntArray, num_programs: int) -> Shares:
    """The shares of tiles of the rows that compute several tokens: see `share_tiles`. The longest come first, so that
    none is left to run alone at the end."""
    longer = np.flatnonzero(host[2] > 1)
    num_tiles = -(-host[2][longer] // CHUNK_TILE_TOKENS)
    index = np.repeat(longer, num_tiles)
    number = np.arange(len(index)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    first = number * CHUNK_TILE_TOKENS
    contexts = host[1][index] + np.minimum(first + CHUNK_TILE_TOKENS, host[2][index])
    most = int(host[2].sum()) // CHUNK_TILE_TOKENS + SPARE_TILES
    return share_tiles(np.column_stack([index, first]), contexts.astype(np.int64), num_programs, most)
