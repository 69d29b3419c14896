"""Host memory for the KV of preempted tokens: a bounded pool of slots that K and V are copied to and from.

A device slot's K and V lie in as many places as there are layers; a host slot is one row of bytes. Between the two
stands a staging buffer on the device, gathered or scattered in one launch, so that what crosses the bus is long runs:

    save       MAIN  ..wait(buffer) gather | slots may be overwritten from here on, nothing of MAIN waits any more
               COPY                  wait(gather) buffer -> host rows |
    restore    COPY  ..wait(buffer) host rows -> buffer |
               MAIN                               wait(copy) scatter | slots may be read from here on

A buffer remembers the event of its last use and nobody writes to it before that: the copy of the save that filled it,
or the scatter of the restore that it served. Host rows need no events of their own. Only COPY touches them, in the
order of the calls, so a restore follows the save of its rows, and a save into rows that a restore reads follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.kernels.dispatch import SlotCopier, slot_copier
from engine.runner.model.attention import LayerCache
from engine.runner.streams import Event, Stream, Streams, send

SlotArray = npt.NDArray[np.int64]

# Of one staging buffer. A bus of 25 to 55 GB/s takes 0.3 to 0.6 ms for it, several times what launching its copy takes.
BUFFER_BYTES = 16 << 20
# Of each direction. MAIN stops for the bus only when it saves more than all buffers hold (1,000 tokens of an 8B model).
NUM_BUFFERS = 8


class HostKV:
    """`num_host_slots` slots of every layer's K and V beside the device's `caches`. On a CPU runner it is a real second
    buffer too, so that a wrong slot shows as a wrong token there as it would on a GPU.

    Calls take effect in the order in which they are made, as seen by the work that the caller gives to MAIN before and
    after them. The host never waits for the device, but in `close`.
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
        """Takes `num_host_slots * bytes_per_slot` of host memory, pinned where `device` is a GPU, and `staging_bytes`
        of the device's. `copier` None is the fastest one for the device. Raises RuntimeError where the memory cannot
        be had."""
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
        """K and V of `device_slots[i]` go to `host_slots[i]`. Raises ValueError for a slot that is not there."""
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
        """K and V of `host_slots[i]` go to `device_slots[i]`. Raises ValueError for a slot that is not there."""
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
        """Waits for copies under way and gives the memory back. The object is not used again."""
        if not self._is_open:
            return
        self._is_open = False
        for stream in Stream:
            self._streams.record(stream).synchronize()
        self._memory.close()
        del self._memory, self._saving, self._restoring, self._copier

    def _check(self, device_slots: Sequence[int], host_slots: Sequence[int]) -> bool:
        """Whether there is anything to do."""
        if len(device_slots) != len(host_slots):
            raise ValueError(f"{len(device_slots)} device slots for {len(host_slots)} host slots")
        if not host_slots:
            return False
        if not self.num_slots:
            raise ValueError("this runner has no host KV memory: give it some with --num-host-slots")
        if not self._is_open:
            raise ValueError("this host KV memory is closed")
        if min(host_slots) < 0 or max(host_slots) >= self.num_slots:
            raise ValueError(f"a host slot is outside of the {self.num_slots} there are")
        if min(device_slots) < 0 or max(device_slots) >= self._num_device_slots:
            raise ValueError(f"a device slot is outside of the {self._num_device_slots} there are")
        return True

    @staticmethod
    def _by_host_slot(device_slots: Sequence[int], host_slots: Sequence[int]) -> tuple[SlotArray, SlotArray]:
        """The same pairs in the order of their host slots, for the longest runs of host memory: a pool hands slots out
        in any order, often backwards."""
        on_host = np.array(host_slots, dtype=np.int64)
        order = np.argsort(on_host, kind="stable")
        return np.array(device_slots, dtype=np.int64)[order], on_host[order]


def staging_bytes(bytes_per_slot: int, num_host_slots: int) -> int:
    """Device memory that a `HostKV` takes."""
    return 2 * NUM_BUFFERS * _buffer_slots(bytes_per_slot, num_host_slots, BUFFER_BYTES) * bytes_per_slot


def _buffer_slots(bytes_per_slot: int, num_host_slots: int, buffer_bytes: int) -> int:
    """No buffer is longer than all there is to copy, and each holds at least one slot."""
    return min(num_host_slots, max(1, buffer_bytes // bytes_per_slot))


def _runs(host_slots: SlotArray) -> Iterator[tuple[slice, slice]]:
    """(indices, slots) of each stretch of ascending consecutive slots: one copy each."""
    cuts = np.flatnonzero(np.diff(host_slots) != 1) + 1
    edges = [0, *cuts.tolist(), len(host_slots)]
    for first, end in pairwise(edges):
        slot = int(host_slots[first])
        yield slice(first, end), slice(slot, slot + end - first)


class _Buffer:
    __slots__ = ("last_use", "rows")

    def __init__(self, rows: torch.Tensor, last_use: Event) -> None:
        self.rows = rows  # [slots, bytes_per_slot] uint8, on the device
        self.last_use = last_use  # until which its contents are needed


class _Ring:
    """Staging buffers of one direction, used in turn."""

    def __init__(
        self, num_buffers: int, num_slots: int, bytes_per_slot: int, device: torch.device, streams: Streams
    ) -> None:
        with streams.on(Stream.MAIN):
            rows = torch.empty((num_buffers, num_slots, bytes_per_slot), dtype=torch.uint8, device=device)
        # Until then work of MAIN may still use what lay in this memory before.
        free = streams.record(Stream.MAIN)
        self._buffers = [_Buffer(part, free) for part in rows]
        self._num_slots = num_slots
        self._next = 0

    def next(self) -> _Buffer:
        """The buffer whose last use is the longest ago."""
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % len(self._buffers)
        return buffer

    def pieces(self, total: int) -> Iterator[slice]:
        """[0, total) in parts that fit a buffer."""
        for first in range(0, total, self._num_slots):
            yield slice(first, min(first + self._num_slots, total))


class _HostMemory:
    """`rows` [num_slots, bytes_per_slot] uint8. The operating system's pages, pinned as they are for a GPU: torch's own
    pinned memory comes in powers of two, and is kept when it is dropped."""

    def __init__(self, num_slots: int, bytes_per_slot: int, device: torch.device) -> None:
        # numpy's zeros take pages as they are first written, not all at start (a CPU runner may never need them).
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
        """No copy may be under way."""
        if self._runtime is not None:
            self._runtime.cudaHostUnregister(self.rows.data_ptr())
        del self.rows


_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context of the process
