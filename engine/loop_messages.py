"""What the main loop receives, and what it sends: messages of the lanes, and events of requests or answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.core.events import Event
from engine.core.request import Request


@dataclass(frozen=True, slots=True)
class Add:
    """Start a request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    """End a request early. If it has already ended, no event follows."""

    request_id: str


@dataclass(frozen=True, slots=True)
class QueryStats:
    """Ask for a snapshot. The answer is a `StatsEvent` with the same tag. `with_memory` adds a map of the KV memory."""

    tag: str
    with_memory: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """End the loop after the current step."""


Message = Add | Abort | QueryStats | Stop


@dataclass(frozen=True, slots=True)
class StatsEvent:
    """A snapshot of counters and gauges, as `EngineMetrics.snapshot` returns it."""

    tag: str
    values: dict[str, Any]


LoopEvent = Event | StatsEvent
