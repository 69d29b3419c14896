"""Time that passes only when somebody says so."""

from __future__ import annotations


class VirtualClock:
    """Seconds since the start of a simulation. Called, it tells the time, as `EngineLoop` asks for it."""

    __slots__ = ("now_s",)

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, elapsed_s: float) -> None:
        """So much time has passed. Raises ValueError if it is negative."""
        if elapsed_s < 0:
            raise ValueError(f"time cannot pass backwards, by {elapsed_s:g} s")
        self.now_s += elapsed_s

    def jump_to(self, time_s: float) -> None:
        """Sleep until then; no time passes if that is over already."""
        self.now_s = max(self.now_s, time_s)
