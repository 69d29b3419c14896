"""Copies K and V of all layers from slots of the device to others of its slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from engine.core.plan import Restore
from engine.kernels.dispatch import SlotCopier
from engine.runner.streams import send

# Several requests are copied at once through a buffer of this size, or of the size that one of them needs.
BUFFER_BYTES = 16 << 20


class DeviceCopies:
    """Copies the known slots of restores. A graph never contains a copy: it precedes the forward pass of its step."""

    def __init__(self, copier: SlotCopier, device: torch.device, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._copier = copier
        self._device = device
        self._most_slots = buffer_bytes // max(1, copier.bytes_per_slot)

    @torch.inference_mode()
    def copy(self, restores: Sequence[Restore]) -> None:
        """Carry out restores that follow one another in a plan. None of them writes slots that a later one reads, since
        what a plan copies was known before it was made."""
        for group in self._groups(restores):
            pairs = np.array(
                [
                    [slot for restore in group for slot in restore.known_slots],
                    [slot for restore in group for slot in restore.device_slots],
                ]
            )
            known, slots = send(torch.from_numpy(pairs), self._device)
            self._copier.scatter(slots, self._copier.gather(known))

    def _groups(self, restores: Sequence[Restore]) -> Iterator[list[Restore]]:
        """Whole restores that fit into the buffer together: the block that is read may be the one that is written."""
        group: list[Restore] = []
        num_slots = 0
        for restore in restores:
            if group and num_slots + len(restore.known_slots) > self._most_slots:
                yield group
                group, num_slots = [], 0
            group.append(restore)
            num_slots += len(restore.known_slots)
        if group:
            yield group
