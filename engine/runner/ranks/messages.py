"""What the engine's process and its ranks tell each other. Every rank answers its assignment, rank 0 each `RESULT`."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import EngineConfig
from engine.runner.base import RunnerInfo

# Commands to ranks; anything else is a pickled plan, to be launched.
CLOSE, RESULT = b"", b"result"


@dataclass(frozen=True, slots=True)
class Assignment:
    """The first thing a rank is told: which it is of how many, where (a file's path) it finds the others, and how many
    tokens its forward passes may have."""

    number: int
    size: int
    rendezvous: str
    config: EngineConfig
    most_tokens: int | None


@dataclass(frozen=True, slots=True)
class Ready:
    """A rank's answer once it has loaded its part."""

    info: RunnerInfo


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A rank's last word: the message of an UnsupportedModel."""

    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A rank's last word: an error nobody foresaw."""

    message: str
    trace: str
    is_out_of_memory: bool = False
