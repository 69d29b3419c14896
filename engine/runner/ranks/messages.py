"""Messages between the engine's process and its ranks.

Every rank answers its `Assignment` with `Ready`; rank 0 answers each `RESULT` with a `StepResult`. A rank that cannot
go on sends `Unsupported` or `Failed` as its last message.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import EngineConfig
from engine.runner.base import RunnerInfo

# Commands to ranks; anything else is a pickled plan to launch, or a pickled grammar to compile.
CLOSE, RESULT = b"", b"result"


@dataclass(frozen=True, slots=True)
class Assignment:
    """The first message to a rank: its number, the number of ranks, the path of the file through which they find each
    other, and the largest number of tokens per forward pass (None: no limit)."""

    number: int
    size: int
    rendezvous: str
    config: EngineConfig
    max_pass_tokens: int | None


@dataclass(frozen=True, slots=True)
class Ready:
    """A rank has loaded its part of the model."""

    info: RunnerInfo


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A rank raised UnsupportedModel with this message."""

    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A rank raised any other error."""

    message: str
    trace: str
    is_out_of_memory: bool = False
