"""Host memory for the KV of preempted tokens: a bounded pool of slots that K and V are copied to and from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from engine.kernels.reference import gather_slots, scatter_slots
from engine.runner.attention import LayerCache


class HostKV:
    """`num_host_slots` slots of every layer's K and V beside the device's `caches`. On a CPU runner it is a real second
    buffer too, so that a wrong slot shows as a wrong token there as it would on a GPU.

    Copies are made in the order in which they are asked for, on the device's current stream: a later write to a device
    slot follows its copy. A side stream would begin in `save` and `restore`, and nobody else would notice.
    """

    def __init__(self, caches: Mapping[int, LayerCache], host: Mapping[int, LayerCache]) -> None:
        """Of both mappings the same layers; `host` from `kv_memory.allocate_host_kv`."""
        self._pairs = [  # (device, host), each [slots, Hkv, D]
            pair
            for index, cache in caches.items()
            for pair in ((cache.k, host[index].k), (cache.v, host[index].v))
        ]
        self.num_slots = len(self._pairs[0][1]) if self._pairs else 0

    def save(self, device_slots: Sequence[int], host_slots: Sequence[int]) -> None:
        """K and V of `device_slots[i]` go to `host_slots[i]`. Raises ValueError for a slot that is not there."""
        self._copy(device_slots, host_slots, to_host=True)

    def restore(self, host_slots: Sequence[int], device_slots: Sequence[int]) -> None:
        """K and V of `host_slots[i]` go to `device_slots[i]`. Raises ValueError for a slot that is not there."""
        self._copy(device_slots, host_slots, to_host=False)

    @torch.inference_mode()
    def _copy(self, device_slots: Sequence[int], host_slots: Sequence[int], *, to_host: bool) -> None:
        if len(device_slots) != len(host_slots):
            raise ValueError(f"{len(device_slots)} device slots for {len(host_slots)} host slots")
        if not host_slots:
            return
        if not self.num_slots:
            raise ValueError("this runner has no host KV memory: give it some with --num-host-slots")
        if min(host_slots) < 0 or max(host_slots) >= self.num_slots:
            raise ValueError(f"a host slot is outside of the {self.num_slots} there are")
        on_host = torch.tensor(host_slots)
        on_device = torch.tensor(device_slots).to(self._pairs[0][0].device)
        for device, host in self._pairs:
            if to_host:
                scatter_slots(host, on_host, gather_slots(device, on_device).to(host.device))
            else:
                scatter_slots(device, on_device, gather_slots(host, on_host).to(device.device))
