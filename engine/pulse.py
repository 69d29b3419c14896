"""Signs of life of the main loop, which other threads read without asking it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Pulse:
    """What the main loop is doing. It alone writes; each write replaces one reference, so any thread may read.

    `num_steps` counts completed steps, and the parts of a step that is computed in parts. `is_busy` is false only while
    the loop has nothing to compute and waits for a message. The step under way is predicted to end at `due_s`, in the
    loop's own time.
    """

    num_steps: int = 0
    is_busy: bool = False
    due_s: float = float("-inf")
