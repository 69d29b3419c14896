"""Reads and writes of cache slots in simple PyTorch: storing a step's K and V, and copying slots of all layers.

Shapes as in `engine.kernels.reference.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def store_kv(
    k: torch.Tensor,  # [T, Hkv, D]
    v: torch.Tensor,  # [T, Hkv, Dv]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D]
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv]
    slot_mapping: torch.Tensor,  # [T] int64, no slot twice; -1: not stored
) -> None:
    """Writes each token's K and V to its slot in the cache's dtype. float8 e4m3 has no scale and saturates at +-448."""
    stored = slot_mapping >= 0
    slots = slot_mapping[stored]
    for x, cache in ((k, k_cache), (v, v_cache)):
        if cache.dtype is torch.float8_e4m3fn:
            # Copied as bytes, since torch has no indexed copies of float8.
            x = x.float().clamp(-448.0, 448.0).to(cache.dtype).view(torch.uint8)
            cache = cache.view(torch.uint8)
        cache.index_copy_(0, slots, x[stored].to(cache.dtype))


def gather_slots(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """A copy of the cache's rows at `slots` ([n] int64), in that order: [n, H, D]."""
    if cache.dtype is torch.float8_e4m3fn:
        return cache.view(torch.uint8).index_select(0, slots).view(cache.dtype)
    return cache.index_select(0, slots)


class TorchSlotCopier:
    """Copies K and V of all layers between slots and rows of bytes, in which those of a token lie side by side:

        staging[i]   | layer 0 K of slots[i] | layer 0 V | layer 1 K | ...
                     0                                                   bytes_per_slot

    Layers may differ in heads and sizes. A slot of -1 is skipped.
    """

    def __init__(self, caches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """`caches`: K [num_slots, Hkv, D] and V [num_slots, Hkv, Dv] of each layer, contiguous."""
        # [num_slots, bytes of a slot]
        self._caches = [cache.flatten(1).view(torch.uint8) for pair in caches for cache in pair]
        self.bytes_per_slot = sum(cache.shape[1] for cache in self._caches)

    def gather(
        self,
        slots: torch.Tensor,  # [n] int64, on the caches' device
        out: torch.Tensor
        | None = None,  # [n, bytes_per_slot] uint8, written; a row for slot -1 is left as it was
    ) -> torch.Tensor:  # [n, bytes_per_slot] uint8
        """Copies `slots` to rows of bytes."""
        if out is None:
            out = torch.empty(len(slots), self.bytes_per_slot, dtype=torch.uint8, device=slots.device)
        check_staging(slots, out, self.bytes_per_slot)
        kept = slots >= 0
        if self._caches:
            out[kept] = torch.cat([cache[slots[kept]] for cache in self._caches], dim=1)
        return out

    def scatter(
        self,
        slots: torch.Tensor,  # [n] int64, on the caches' device, none twice
        staging: torch.Tensor,  # [n, bytes_per_slot] uint8
    ) -> None:
        """Writes rows that `gather` returned to `slots`."""
        check_staging(slots, staging, self.bytes_per_slot)
        kept = slots >= 0
        begin = 0
        for cache in self._caches:
            cache[slots[kept]] = staging[kept, begin : begin + cache.shape[1]]
            begin += cache.shape[1]


def check_staging(slots: torch.Tensor, staging: torch.Tensor, bytes_per_slot: int) -> None:
    """Raises ValueError unless `staging` is [n, bytes_per_slot] uint8 for n slots, contiguous, on their device."""
    if slots.dtype is not torch.int64 or slots.dim() != 1:
        raise ValueError(f"slots are {slots.dtype} {list(slots.shape)}, but must be a vector of int64")
    if (
        staging.dtype is not torch.uint8
        or staging.shape != (len(slots), bytes_per_slot)
        or staging.device != slots.device
        or not staging.is_contiguous()
    ):
        raise ValueError(
            f"{len(slots)} slots on {slots.device} need a contiguous uint8 buffer of {[len(slots), bytes_per_slot]} "
            f"there, not {staging.dtype} {list(staging.shape)} on {staging.device}"
        )
