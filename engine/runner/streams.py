"""What the data plane asks of a device's streams: two of them, and events that order one after the other.

Work given to a stream runs in the order given, some time later; work of different streams runs in any order, except
where one was told to wait for an event of the other. The host goes on at once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Protocol

import torch


class Stream(Enum):
    MAIN = "main"  # the forward pass, sampling, and whatever reads or writes the KV cache
    COPY = "copy"  # between host memory and staging buffers


class Event(Protocol):
    """A point in a stream: all that it was given before."""

    def has_passed(self) -> bool:
        """Whether the device is done with it; the host does not wait."""

    def synchronize(self) -> None:
        """The host waits until the device is done with it."""


class Streams(Protocol):
    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """Inside of it, operations on device tensors are given to `stream`. New device tensors belong to it: their
        memory is used again, once they are dropped, by later work of that stream, whatever others still do with it."""

    def record(self, stream: Stream) -> Event:
        """An event after everything that `stream` was given so far."""

    def wait(self, stream: Stream, event: Event) -> None:
        """What `stream` is given from here on follows `event`. The host does not wait."""


class CudaStreams:
    """Of one GPU. MAIN is the stream current on the thread that makes this, which has to be the one that launches."""

    def __init__(self, device: torch.device) -> None:
        self._streams = {
            Stream.MAIN: torch.cuda.current_stream(device),
            Stream.COPY: torch.cuda.Stream(device),  # type: ignore[no-untyped-call]
        }

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._streams[stream])

    def record(self, stream: Stream) -> CudaEvent:
        return CudaEvent(self._streams[stream].record_event())

    def wait(self, stream: Stream, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self._streams[stream].wait_event(event.event)


class CudaEvent:
    __slots__ = ("event",)

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def has_passed(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    def synchronize(self) -> None:
        self.event.synchronize()


class InOrder:
    """Of a CPU: every operation is over when its call returns."""

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self, stream: Stream) -> Event:
        return _PASSED

    def wait(self, stream: Stream, event: Event) -> None:
        """Nothing is left to wait for."""


class _Passed:
    def has_passed(self) -> bool:
        return True

    def synchronize(self) -> None:
        """It is over."""


_PASSED = _Passed()


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values` of the host on `device`, for what the current stream is given from here on. The host does not wait."""
    # Pinned memory of its own for each call: torch does not use it again before it has been read.
    if device.type == "cuda" and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def streams_of(device: torch.device) -> Streams:
    """Those of `device`; call it on the thread that launches."""
    return CudaStreams(device) if device.type == "cuda" else InOrder()
