"""Carries out what a plan moves in KV memory: copies to the host, restores from there, and copies of known slots."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import torch

from engine.core.plan import Restore, StepPlan
from engine.kernels.dispatch import slot_copier
from engine.runner.kv.copies import DeviceCopies
from engine.runner.kv.host import HostKV
from engine.runner.kv.memory import LayerCache
from engine.runner.streams import streams_of


class KVMoves:
    """The slots of a device and those of its host. Used from one thread."""

    def __init__(self, caches: Mapping[int, LayerCache], num_host_slots: int, device: torch.device) -> None:
        copier = slot_copier(caches)
        self._host = HostKV(caches, num_host_slots, device, streams_of(device), copier=copier)
        self._device = DeviceCopies(copier, device)

    def save(self, plan: StepPlan) -> None:
        """Copies slots to the host, as they are before anything else of the plan."""
        if not plan.copies_out:
            return
        # One call, since each takes a staging buffer. Of several copies to a host slot, the last one counts.
        saved = {
            host_slot: slot
            for copy in plan.copies_out
            for slot, host_slot in zip(copy.device_slots, copy.host_slots, strict=True)
        }
        self._host.save(list(saved.values()), list(saved))

    def restore(self, plan: StepPlan) -> None:
        """Fills slots with what the host has, or with what other slots have, in the order of the plan."""
        copied = [restore for restore in plan.restores if restore.known_slots or restore.host_slots]
        for is_on_device, restores in groupby(copied, _is_on_device):
            if is_on_device:
                self._device.copy(list(restores))
                continue
            for restore in restores:
                self._host.restore(restore.host_slots, restore.device_slots[: len(restore.host_slots)])

    def close(self) -> None:
        """Releases the memory of both. The device must have finished all copies."""
        self._host.close()
        del self._device


def _is_on_device(restore: Restore) -> bool:
    return bool(restore.known_slots)
