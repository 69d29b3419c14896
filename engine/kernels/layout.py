"""Where the tokens of one step lie: what every attention backend is told besides Q, K and V."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class StepLayout:
    """T packed tokens of R rows. Row i computes positions [starts[i], starts[i] + counts[i]) of the sequence in
    slot-table row `rows[i]`; its tokens are [offsets[i], offsets[i] + counts[i]) of the packed ones:

        packed   | row 0: counts[0] tokens | row 1 | row 2: counts[2] tokens        |
                 0                offsets[1]       offsets[2]                       T

    The step's own slots are in `slot_table` already, so a query at position p reads positions [0, p] there.
    Both forms of the row data hold the same numbers: `host` to decide with, `device` for kernels to read.
    """

    slot_table: torch.Tensor  # [max_rows, max_model_len] int32, on the device
    slot_mapping: torch.Tensor  # [T] int64, on the device: where each token's K and V go
    host: IntArray  # [4, R] rows, starts, counts, offsets
    device: torch.Tensor  # [4, R] int32, on the device
    scratch: dict[Any, Any] = field(
        default_factory=dict
    )  # what a backend computes once for all layers of the step

    @staticmethod
    def build(
        slot_table: torch.Tensor,
        slot_mapping: torch.Tensor,
        rows: npt.ArrayLike,
        starts: npt.ArrayLike,
        counts: npt.ArrayLike,
    ) -> StepLayout:
        """The layout of rows packed one after another in the order given."""
        host = np.empty((4, len(np.asarray(rows))), dtype=np.int32)
        host[0], host[1], host[2] = rows, starts, counts
        host[3] = np.cumsum(host[2]) - host[2]
        device = torch.from_numpy(host).to(slot_table.device, non_blocking=True)
        return StepLayout(slot_table, slot_mapping, host, device)

    @cached_property
    def single_token_rows(self) -> IntArray:
        """[5, S] row, start, count, offset and end of the rows that compute one token (end = start + 1)."""
        picked = self.host[:, self.host[2] == 1]
        return np.ascontiguousarray(np.concatenate([picked, picked[1:2] + 1]))

    @cached_property
    def longer_rows(self) -> IntArray:
        """[4, C] row, start, count and offset of the rows that compute more than one token."""
        return np.ascontiguousarray(self.host[:, self.host[2] > 1])
