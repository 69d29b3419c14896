"""The two streams of a device, and the events that order their work.

The work given to a stream runs later, in the order given. The work of different streams runs in any order, except that
a stream can wait for an event of the other. The host continues at once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Protocol

import torch


class Stream(Enum):
    """The streams that runners use."""

    MAIN = "main"  # the forward pass, sampling, and everything else that reads or writes the KV cache
    COPY = "copy"  # copies between host memory and staging buffers


class Event(Protocol):
    """A point in a stream, which is reached when all work that was given before is done."""

    def synchronize(self) -> None:
        """The host waits until the device has reached the event."""


class Streams(Protocol):
    """The streams of one device."""

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """In this context, operations on device tensors are given to `stream`, and new device tensors belong to it:
        once they are dropped, later work of that stream reuses their memory, even if other streams still use it."""

    def record(self, stream: Stream) -> Event:
        """Returns an event after everything that `stream` was given so far."""

    def wait(self, stream: Stream, event: Event) -> None:
        """Makes all later work of `stream` follow `event`. The host does not wait."""


class CudaStreams:
    """The streams of one GPU. MAIN is the current stream of the thread that makes this, which must be the one that
    launches."""

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

    def synchronize(self) -> None:
        self.event.synchronize()


class CpuStreams:
    """The streams of a CPU, where every operation is complete when its call returns."""

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self, stream: Stream) -> Event:
        return _REACHED

    def wait(self, stream: Stream, event: Event) -> None:
        """Does nothing: the event has been reached."""


class _ReachedEvent:
    def synchronize(self) -> None:
        """Does nothing: the event has been reached."""


_REACHED = _ReachedEvent()


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies `values` from the host to `device`, for later work of the current stream. The host does not wait."""
    # Each call uses new pinned memory, which torch does not reuse before it has been read.
    if device.type == "cuda" and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def streams_of(device: torch.device) -> Streams:
    """The streams of `device`. Must be called on the thread that launches."""
    return CudaStreams(device) if device.type == "cuda" else CpuStreams()
