"""The virtual clock of a simulation, which only the simulation advances."""

from __future__ import annotations


class VirtualClock:
    """Seconds since the start of a simulation. It is callable, so that it can be the clock of an `EngineLoop`."""

    __slots__ = ("now_s",)

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, elapsed_s: float) -> None:
        """Advance the clock by `elapsed_s`. Raises ValueError if that is negative."""
        if elapsed_s < 0:
            raise ValueError(f"time cannot run backwards by {elapsed_s:g} s")
        self.now_s += elapsed_s

    def jump_to(self, time_s: float) -> None:
        """Advance the clock to `time_s`, unless that is in the past."""
        self.now_s = max(self.now_s, time_s)
