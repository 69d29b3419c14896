"""Host memory for the K and V of preempted tokens, and the asynchronous copies to and from it.

The K and V of a device slot lie in as many places as there are layers; a host slot is one row of bytes. Between the two
is a staging buffer on the device that is gathered or scattered in one launch, so that long runs cross the bus:

    save       MAIN  ..wait(buffer) gather | slots may be overwritten from here on; MAIN no longer waits
               COPY                  wait(gather) buffer -> host rows |
    restore    COPY  ..wait(buffer) host rows -> buffer |
               MAIN                               wait(copy) scatter | slots may be read from here on

A buffer keeps the event of its last use, before which it is not written again: the copy of the save that filled it, or
the scatter of the restore that it served. Host rows need no events. Only COPY touches them, in the order of the calls,
so a restore follows the save of its rows, and a save into rows that a restore reads follows that restore.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.kernels.dispatch import SlotCopier, slot_copier
from engine.runner.kv.memory import LayerCache
from engine.runner.streams import Event, Stream, Streams, send

SlotArray = npt.NDArray[np.int64]

# The size of one staging buffer. A bus of 25 to 55 GB/s transfers it in 0.3 to 0.6 ms, several times as long as it
# takes to launch the copy.
BUFFER_BYTES = 16 << 20
# Staging buffers per direction. MAIN waits for the bus only when it saves more than all of them hold (1,000 tokens of
# an 8B model).
NUM_BUFFERS = 8


class HostKV:
    """Copies K and V of all layers between the device's `caches` and `num_host_slots` slots of host memory.

    A CPU runner has a real second buffer too, so that a wrong slot shows there as a wrong token, as it does on a GPU.
    Calls take effect in the order in which they are made, as seen by the work that the caller gives to MAIN before and
    after them. The host waits for the device only in `close`.
    """

    def __init__(
        self,
        caches: Mapping[int, LayerCache],
        num_host_slots: int,
        device: torch.device,
        streams: Streams,
        *,
        copier: SlotCopier | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        num_buffers: int = NUM_BUFFERS,
    ) -> None:
        """Allocates `num_host_slots * bytes_per_slot` bytes of host memory, pinned if `device` is a GPU, and
        `staging_bytes` of device memory. `copier` None is the fastest one for the device. Raises RuntimeError if the
        host memory cannot be pinned."""
        self.num_slots = num_host_slots
        self._device = device
        self._streams = streams
        self._num_device_slots = min((len(cache.k) for cache in caches.values()), default=0)
        self._is_open = num_host_slots > 0
        if not self._is_open:
            return
        self._copier = slot_copier(caches) if copier is None else copier
        row = self._copier.bytes_per_slot
        self._memory = _HostMemory(num_host_slots, row, device)
        slots = _buffer_slots(row, num_host_slots, buffer_bytes)
        self._saving = _Ring(num_buffers, slots, row, device, streams)
        self._restoring = _Ring(num_buffers, slots, row, device, streams)

    @torch.inference_mode()
    def save(self, device_slots: Sequence[int], host_slots: Sequence[int]) -> None:
        """Copies K and V of `device_slots[i]` to `host_slots[i]`. Raises ValueError for a slot that does not exist."""
        if not self._check(device_slots, host_slots):
            return
        on_device, on_host = self._by_host_slot(device_slots, host_slots)
        if (np.diff(on_host) == 0).any():
            raise ValueError("two tokens are saved to the same host slot")
        streams, ring = self._streams, self._saving
        with streams.on(Stream.MAIN):
            indices = send(torch.from_numpy(on_device), self._device)
        for piece in ring.pieces(len(on_host)):
            buffer = ring.next()
            rows = buffer.rows[: piece.stop - piece.start]
            streams.wait(Stream.MAIN, buffer.last_use)
            with streams.on(Stream.MAIN):
                self._copier.gather(indices[piece], rows)
            streams.wait(Stream.COPY, streams.record(Stream.MAIN))
            with streams.on(Stream.COPY):
                for staged, host in _runs(on_host[piece]):
                    self._memory.rows[host].copy_(rows[staged], non_blocking=True)
            buffer.last_use = streams.record(Stream.COPY)

    @torch.inference_mode()
    def restore(self, host_slots: Sequence[int], device_slots: Sequence[int]) -> None:
        """Copies K and V of `host_slots[i]` to `device_slots[i]`. Raises ValueError for a slot that does not exist."""
        if not self._check(device_slots, host_slots):
            return
        on_device, on_host = self._by_host_slot(device_slots, host_slots)
        if len(np.unique(on_device)) < len(on_device):
            raise ValueError("two tokens are restored to the same device slot")
        streams, ring = self._streams, self._restoring
        with streams.on(Stream.MAIN):
            indices = send(torch.from_numpy(on_device), self._device)
        for piece in ring.pieces(len(on_host)):
            buffer = ring.next()
            rows = buffer.rows[: piece.stop - piece.start]
            streams.wait(Stream.COPY, buffer.last_use)
            with streams.on(Stream.COPY):
                for staged, host in _runs(on_host[piece]):
                    rows[staged].copy_(self._memory.rows[host], non_blocking=True)
            streams.wait(Stream.MAIN, streams.record(Stream.COPY))
            with streams.on(Stream.MAIN):
                self._copier.scatter(indices[piece], rows)
            buffer.last_use = streams.record(Stream.MAIN)

    def close(self) -> None:
        """Waits for copies under way and releases the memory. The object must not be used afterwards."""
        if not self._is_open:
            return
        self._is_open = False
        for stream in Stream:
            self._streams.record(stream).synchronize()
        self._memory.close()
        del self._memory, self._saving, self._restoring, self._copier

    def _check(self, device_slots: Sequence[int], host_slots: Sequence[int]) -> bool:
        """Whether there is anything to copy. Raises ValueError for slots that do not exist."""
        if len(device_slots) != len(host_slots):
            raise ValueError(f"{len(device_slots)} device slots for {len(host_slots)} host slots")
        if not host_slots:
            return False
        if not self.num_slots:
            raise ValueError("this runner has no host KV memory: set --num-host-slots")
        if not self._is_open:
            raise ValueError("this host KV memory is closed")
        if min(host_slots) < 0 or max(host_slots) >= self.num_slots:
            raise ValueError(f"a host slot is outside of the {self.num_slots} slots of host memory")
        if min(device_slots) < 0 or max(device_slots) >= self._num_device_slots:
            raise ValueError(f"a device slot is outside of the {self._num_device_slots} slots on the device")
        return True

    @staticmethod
    def _by_host_slot(device_slots: Sequence[int], host_slots: Sequence[int]) -> tuple[SlotArray, SlotArray]:
        """The same pairs sorted by host slot, which gives the longest runs of host memory. A pool hands out slots in
        any order, often backwards."""
        on_host = np.array(host_slots, dtype=np.int64)
        order = np.argsort(on_host, kind="stable")
        return np.array(device_slots, dtype=np.int64)[order], on_host[order]


def staging_bytes(bytes_per_slot: int, num_host_slots: int) -> int:
    """The device memory that a `HostKV` allocates."""
    return 2 * NUM_BUFFERS * _buffer_slots(bytes_per_slot, num_host_slots, BUFFER_BYTES) * bytes_per_slot


def _buffer_slots(bytes_per_slot: int, num_host_slots: int, buffer_bytes: int) -> int:
    """Slots per staging buffer: at least one, and no more than there are host slots."""
    return min(num_host_slots, max(1, buffer_bytes // bytes_per_slot))


def _runs(host_slots: SlotArray) -> Iterator[tuple[slice, slice]]:
    """Yields (indices, slots) for each run of consecutive ascending slots; each run is one copy."""
    cuts = np.flatnonzero(np.diff(host_slots) != 1) + 1
    edges = [0, *cuts.tolist(), len(host_slots)]
    for first, end in pairwise(edges):
        slot = int(host_slots[first])
        yield slice(first, end), slice(slot, slot + end - first)


class _Buffer:
    __slots__ = ("last_use", "rows")

    def __init__(self, rows: torch.Tensor, last_use: Event) -> None:
        self.rows = rows  # [slots, bytes_per_slot] uint8, on the device
        self.last_use = last_use  # its contents are needed until then


class _Ring:
    """The staging buffers of one direction, used round-robin."""

    def __init__(
        self, num_buffers: int, num_slots: int, bytes_per_slot: int, device: torch.device, streams: Streams
    ) -> None:
        with streams.on(Stream.MAIN):
            rows = torch.empty((num_buffers, num_slots, bytes_per_slot), dtype=torch.uint8, device=device)
        # Until this event, work of MAIN may still use the former contents of this memory.
        free = streams.record(Stream.MAIN)
        self._buffers = [_Buffer(part, free) for part in rows]
        self._num_slots = num_slots
        self._next = 0

    def next(self) -> _Buffer:
        """Returns the buffer that was used least recently."""
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % len(self._buffers)
        return buffer

    def pieces(self, total: int) -> Iterator[slice]:
        """Yields [0, total) in parts that fit into a buffer."""
        for first in range(0, total, self._num_slots):
            yield slice(first, min(first + self._num_slots, total))


class _HostMemory:
    """Host memory `rows` [num_slots, bytes_per_slot] uint8, pinned for a GPU.

    It registers pages of the operating system, since torch's own pinned memory comes in sizes that are powers of two
    and is not returned when its tensors are dropped.
    """

    def __init__(self, num_slots: int, bytes_per_slot: int, device: torch.device) -> None:
        # numpy's zeros take a page only when it is first written: a CPU runner may never need most of them.
        self.rows = torch.from_numpy(np.zeros((num_slots, bytes_per_slot), dtype=np.uint8))
        self._runtime: Any = None
        if device.type == "cuda":
            self._runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            error = int(self._runtime.cudaHostRegister(self.rows.data_ptr(), self.rows.nbytes, _PORTABLE))
            if error:
                raise RuntimeError(
                    f"{self.rows.nbytes / 1e9:.1f} GB of host memory for {num_slots} slots cannot be pinned "
                    f"(CUDA error {error}): lower --num-host-slots, or raise the limit on locked memory (ulimit -l)"
                )

    def close(self) -> None:
        """Releases the memory. No copy may be under way."""
        if self._runtime is not None:
            self._runtime.cudaHostUnregister(self.rows.data_ptr())
        del self.rows


_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context of the process
