"""Saves and restores on their own stream: each read finds the right contents, in whatever order the device runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from engine.runner.kv.host import HostKV
from engine.runner.kv.memory import LayerCache
from engine.runner.streams import CudaStreams, Event, Stream
from tests.engine.runner.fake_device import FakeDevice, poison
from tests.engine.runner.kv.test_host import CPU, make_caches


class TorchCopier:
    """`engine.kernels.reference.slots.TorchSlotCopier` without its checks of the slots, which make the host wait."""

    def __init__(self, caches: Mapping[int, LayerCache]) -> None:
        self._parts = [
            part.view(len(part), -1).view(torch.uint8)  # [slots, bytes]
            for cache in caches.values()
            for part in (cache.k, cache.v)
        ]
        self._sizes = [part.shape[1] for part in self._parts]
        self.bytes_per_slot = sum(self._sizes)

    def gather(self, slots: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        assert out is not None
        for part, staged in zip(self._parts, out.split(self._sizes, dim=1), strict=True):
            staged.copy_(part.index_select(0, slots))
        return out

    def scatter(self, slots: torch.Tensor, staging: torch.Tensor) -> None:
        for part, staged in zip(self._parts, staging.split(self._sizes, dim=1), strict=True):
            part.index_copy_(0, slots, staged)


@dataclass
class Forgetful(FakeDevice):
    """Drops the waits of one stream in one of the two calls."""

    call: str = ""
    stream: Stream = Stream.MAIN
    under_way: str = ""

    def wait(self, stream: Stream, event: Event) -> None:
        if (self.under_way, stream) != (self.call, self.stream):
            super().wait(stream, event)


class JitteryGpu(CudaStreams):
    """Delays each stream at random."""

    def __init__(self, device: torch.device, seed: int) -> None:
        super().__init__(device)
        self.seed = seed
        self._random = random.Random(seed)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        with super().on(stream):
            torch.cuda._sleep(self._random.choice((0, 0, 1_000_000)))  # cycles: about half a millisecond
            yield

    def finish(self) -> None:
        torch.cuda.synchronize()


NUM_DEVICE_SLOTS = 12


@dataclass
class Scenario:
    """Random writes, reads, saves and restores, and what each read must find, in whatever order the device runs."""

    streams: FakeDevice | JitteryGpu
    device: torch.device = CPU
    num_host_slots: int = 10

    def __post_init__(self) -> None:
        self.random = random.Random(self.streams.seed)
        self.caches = {
            layer: LayerCache(cache.k.to(self.device), cache.v.to(self.device), None)
            for layer, cache in make_caches(NUM_DEVICE_SLOTS).items()
        }
        self.tensors = [part for cache in self.caches.values() for part in (cache.k, cache.v)]
        for tensor in self.tensors:
            poison(tensor)
        # Two buffers of two slots per direction: most copies take several pieces, and buffers are soon reused.
        row = sum(tensor[0].nbytes for tensor in self.tensors)
        self.host_kv = HostKV(
            self.caches,
            self.num_host_slots,
            self.device,
            self.streams,
            copier=TorchCopier(self.caches) if self.device.type == "cpu" else None,
            buffer_bytes=2 * row + 1,
            num_buffers=2,
        )
        self.on_device: dict[int, int] = {}  # by slot: what it contains
        self.on_host: dict[int, int] = {}
        self.num_written = 0
        self.reads: list[tuple[torch.Tensor, list[int]]] = []

    def write(self) -> None:
        slots = self.random.sample(range(NUM_DEVICE_SLOTS), self.random.randint(1, 8))
        values = [self.num_written + i for i in range(len(slots))]
        self.num_written += len(slots)
        with self.streams.on(Stream.MAIN):
            where, new = self._send(slots), self._send(values).float()
            for i, tensor in enumerate(self.tensors):
                rows = (new + i / 8).view(-1, 1, 1).expand(-1, *tensor.shape[1:])
                tensor.index_copy_(0, where, rows)
        self.on_device.update(zip(slots, values, strict=True))

    def read(self) -> None:
        slots = sorted(self.on_device)
        expected = [self.on_device[slot] for slot in slots]
        with self.streams.on(Stream.MAIN):
            where = self._send(slots)
            for i, tensor in enumerate(self.tensors):
                found = tensor.index_select(0, where)
                self.reads.append((found, [value + i / 8 for value in expected]))

    def save(self) -> None:
        slots = self._some(self.on_device, self.num_host_slots)
        host_slots = self.random.sample(range(self.num_host_slots), len(slots))
        self._call("save", slots, host_slots)
        self.on_host.update(
            {host: self.on_device[slot] for host, slot in zip(host_slots, slots, strict=True)}
        )

    def restore(self) -> None:
        host_slots = self._some(self.on_host, NUM_DEVICE_SLOTS)
        slots = self.random.sample(range(NUM_DEVICE_SLOTS), len(host_slots))
        self._call("restore", host_slots, slots)
        self.on_device.update(
            {slot: self.on_host[host] for host, slot in zip(host_slots, slots, strict=True)}
        )

    def _call(self, name: str, *slots: list[int]) -> None:
        if isinstance(self.streams, Forgetful):
            self.streams.under_way = name
        getattr(self.host_kv, name)(*slots)

    def _send(self, numbers: list[int]) -> torch.Tensor:
        """The host does not wait, so it runs ahead of the device."""
        tensor = torch.tensor(numbers, dtype=torch.int64)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _some(self, written: dict[int, int], limit: int) -> list[int]:
        return self.random.sample(sorted(written), self.random.randint(0, min(limit, len(written))))

    def is_right(self, num_operations: int = 14) -> bool:
        operations = (self.write, self.write, self.read, self.save, self.save, self.restore)
        for _ in range(num_operations):
            self.random.choice(operations)()
        self.read()
        self.streams.finish()
        return all(
            torch.equal(found.cpu(), torch.tensor(expected).view(-1, 1, 1).expand(found.shape))
            for found, expected in self.reads
        )


# How far the host runs ahead of the device, and which stream lags: none, the copies, or the forward passes.
PACES = [(pace, share) for pace in (0.0, 0.8, 3.0) for share in (0.0, 0.5, 1.0)]


def devices(num_seeds: int, make: Callable[..., FakeDevice] = FakeDevice) -> Iterator[FakeDevice]:
    return (make(seed, pace, share) for seed in range(num_seeds) for pace, share in PACES)


def test_every_order_that_the_streams_allow_is_right() -> None:
    orders = set()
    for device in devices(6):
        assert Scenario(device).is_right(), device
        orders.add((device.seed, tuple(device.order)))
    assert len(orders) > 30  # many orders were tried


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_streams_of_a_gpu_keep_the_order() -> None:
    gpu = torch.device("cuda", torch.cuda.current_device())
    for seed in range(20):
        scenario = Scenario(JitteryGpu(gpu, seed), gpu)
        assert scenario.is_right(num_operations=40), seed
        scenario.host_kv.close()


def test_the_fake_device_notices_what_a_gpu_would_get_wrong() -> None:
    device = FakeDevice(0, pace=0.0)
    number = torch.ones(3)
    with device.on(Stream.MAIN):
        doubled = number * 2
        with pytest.raises(RuntimeError, match="the host waits"):
            doubled[0].item()
    assert doubled.isnan().all()
    with device.on(Stream.COPY), pytest.raises(AssertionError, match="may reuse"):
        number.copy_(doubled)
    event = device.record(Stream.MAIN)
    assert not event.has_passed()
    event.synchronize()
    assert event.has_passed() and doubled.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize("call", ["save", "restore"])
def test_every_wait_is_needed(call: str, stream: Stream) -> None:
    forgetful = devices(12, lambda *pace: Forgetful(*pace, call=call, stream=stream))
    assert not all(Scenario(device).is_right() for device in forgetful)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_closing_waits_for_copies_under_way(share: float) -> None:
    device, caches = FakeDevice(1, pace=0.0, copy_share=share), make_caches(20)
    host_kv = HostKV(caches, 10, CPU, device, copier=TorchCopier(caches))
    host_kv.save([3, 1], [4, 7])
    host_kv.restore([4, 7], [5, 6])
    host_kv.save([5, 6], [4, 7])
    assert len(device.order) == 0
    host_kv.close()
    assert device.is_idle


def test_main_continues_until_all_buffers_are_full() -> None:
    device, caches = FakeDevice(0, pace=0.0, copy_share=0.0), make_caches(20)
    host_kv = HostKV(caches, 10, CPU, device, copier=TorchCopier(caches), num_buffers=4)
    for slot in range(6):
        host_kv.save([slot], [slot])
    device.finish()
    copies = [i for i, stream in enumerate(device.order) if stream is Stream.COPY]
    gathers_before = device.order[: copies[0]].count(Stream.MAIN)
    assert gathers_before / device.order.count(Stream.MAIN) == pytest.approx(4 / 6, abs=0.05)


def test_runs_of_host_slots_are_copied_at_once() -> None:
    """The slots are two descending runs: a pool hands them out so if they were freed in ascending order."""
    device = FakeDevice(0, pace=0.0, copy_share=0.0)
    caches = make_caches(20)
    host_kv = HostKV(caches, 10, CPU, device, copier=TorchCopier(caches))
    host_kv.save([0, 1, 2, 3, 4, 5], [8, 7, 6, 2, 1, 0])
    device.finish()
    assert device.order.count(Stream.COPY) == 2
