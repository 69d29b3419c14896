"""Copies of slots on a CPU: `engine.kernels.reference.slots.TorchSlotCopier` by rows instead of by bytes.

torch copies indexed bytes one by one and on several threads, which takes longer than computing the tokens anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engine.kernels.reference.slots import check_staging


class CpuSlotCopier:
    """Copies K and V of all layers between slots and rows of bytes. A slot of -1 is skipped."""

    def __init__(self, caches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """`caches`: K [num_slots, Hkv, D] and V [num_slots, Hkv, Dv] of each layer, contiguous."""
        # [num_slots, bytes of a slot]
        self._caches = [cache.flatten(1).view(torch.uint8).numpy() for pair in caches for cache in pair]
        self.bytes_per_slot = sum(cache.shape[1] for cache in self._caches)

    def gather(
        self,
        slots: torch.Tensor,  # [n] int64
        out: torch.Tensor | None = None,  # [n, bytes_per_slot] uint8, written except for slots of -1
    ) -> torch.Tensor:  # [n, bytes_per_slot] uint8
        """Copies `slots` to rows of bytes."""
        if out is None:
            out = torch.empty(len(slots), self.bytes_per_slot, dtype=torch.uint8)
        check_staging(slots, out, self.bytes_per_slot)
        index, rows = slots.numpy(), out.numpy()
        kept = np.flatnonzero(index >= 0)
        begin = 0
        for cache in self._caches:
            rows[kept, begin : begin + cache.shape[1]] = cache[index[kept]]
            begin += cache.shape[1]
        return out

    def scatter(
        self,
        slots: torch.Tensor,  # [n] int64, none twice
        staging: torch.Tensor,  # [n, bytes_per_slot] uint8
    ) -> None:
        """Writes rows that `gather` returned to `slots`."""
        check_staging(slots, staging, self.bytes_per_slot)
        index, rows = slots.numpy(), staging.numpy()
        kept = np.flatnonzero(index >= 0)
        begin = 0
        for cache in self._caches:
            cache[index[kept]] = rows[kept, begin : begin + cache.shape[1]]
            begin += cache.shape[1]
