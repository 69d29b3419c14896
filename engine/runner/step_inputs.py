"""A step as one vector of numbers, which goes to the device in a single copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.kernels.layout import IntArray, StepLayout, host_rows, single_shares, tile_shares
from engine.runner.step_arrays import Int64Array, StepArrays, StepSizes


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
        token_ids, positions, slots, token_rows, *of_layout, wanted, wanted_rows = torch.split(
            vector, sizes.parts
        )
        layout = StepLayout.of_parts(slot_table, slots, host, *of_layout)
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
    num_tile_programs: int = 0,
) -> StepInputs:
    """Packs a step that wants the output of the rows `drawing` (indices into R). `read` are other tokens (indices into
    T) whose output is wanted. All that are wanted are then in the order of the tokens.

    With `padded`, which holds the step, it is padded to those sizes. Padding belongs to slot-table row `padding_row`,
    which no request has. It is stored nowhere, and kernels skip it. `num_programs` is what `share_contexts` takes, and
    `num_tile_programs` is what `share_tiles` takes.
    """
    host = host_rows(step.rows, step.starts, step.counts)
    work, tile_work = single_shares(host, num_programs), tile_shares(host, num_tile_programs)
    wanted_tokens, rows_of_wanted = step.last_tokens[drawing], step.rows[drawing]
    if read is not None:
        wanted_tokens = np.concatenate([wanted_tokens, read])
        order = np.argsort(wanted_tokens)
        wanted_tokens = wanted_tokens[order]
        rows_of_wanted = np.concatenate([rows_of_wanted, np.full(len(read), padding_row)])[order]
    num_tokens, num_rows, num_wanted = len(step.token_ids), len(step.rows), len(wanted_tokens)
    num_shares, num_merges, num_singles = len(work.shares), len(work.merges), int((step.counts == 1).sum())
    num_tiles, num_tile_merges = len(tile_work.shares), len(tile_work.merges)
    extra = num_shares - num_singles
    exact = StepSizes(num_tokens, num_rows, num_singles, num_tiles, num_wanted, extra, num_tile_merges)
    sizes = exact if padded is None else padded
    vector = torch.empty(sizes.total, dtype=torch.int64, pin_memory=pinned)
    parts = np.split(vector.numpy(), np.cumsum(sizes.parts)[:-1])
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
        tile_merges,
        wanted,
        wanted_rows,
    ) = parts
    rows = rows.reshape(4, -1)
    shares, merges = shares.reshape(-1, 4), merges.reshape(-1, 3)
    tiles, tile_merges = tiles.reshape(-1, 5), tile_merges.reshape(-1, 4)
    num_work[:] = num_shares, num_merges, num_tile_merges
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
        tiles[num_tiles:], tile_merges[num_tile_merges:] = (sizes.rows - 1, 0, 0, 1, 0), 0
        wanted[num_wanted:] = sizes.tokens - 1
    token_ids[:num_tokens] = step.token_ids
    positions[:num_tokens] = np.arange(num_tokens) + np.repeat(step.starts - host[3], step.counts)
    slots[:num_tokens] = step.slots
    token_rows[:num_tokens] = np.repeat(step.rows, step.counts)
    rows[:, :num_rows] = host
    shares[:num_shares], merges[:num_merges] = work.shares, work.merges
    tiles[:num_tiles], tile_merges[:num_tile_merges] = tile_work.shares, tile_work.merges
    wanted[:num_wanted] = wanted_tokens
    wanted_rows[:num_wanted] = rows_of_wanted
    return StepInputs(vector, sizes, host, num_wanted)
