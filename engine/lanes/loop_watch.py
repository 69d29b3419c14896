"""Judges from the I/O thread whether the main loop makes progress."""

from __future__ import annotations

from collections.abc import Callable

from engine.pulse import Pulse

TICK_S = 1.0
# The first steps compile kernels, which takes minutes on a slow machine.
NUM_FIRST_STEPS = 32
FIRST_STEPS_FACTOR = 20.0
# A loop that has been late for so many times its limit will not recover.
HOPELESS_FACTOR = 2.0


class LoopWatch:
    """Measures how late the main loop is: the time since its last completed step, beyond what was predicted for it.

    It is stuck when that exceeds `stuck_after_s`, or `FIRST_STEPS_FACTOR` times as long until `NUM_FIRST_STEPS` steps
    are done and, with `is_patient`, always. A loop with nothing to do is never late. Only time between two ticks
    counts, and at most two ticks' worth of it: a process that was stopped as a whole for an hour is not late when it
    continues.
    """

    def __init__(
        self,
        pulse: Pulse,
        has_messages: Callable[[], bool],
        stuck_after_s: float,
        *,
        is_patient: bool = False,
    ) -> None:
        self._pulse = pulse
        self._has_messages = has_messages
        self._stuck_after_s = stuck_after_s
        self._is_patient = is_patient
        self._num_steps = 0
        self._ticked_s: float | None = None
        self.late_s = 0.0

    def tick(self, now_s: float) -> None:
        """Look at the loop. Call this every `TICK_S` seconds."""
        elapsed_s = 0.0 if self._ticked_s is None else min(now_s - self._ticked_s, 2 * TICK_S)
        self._ticked_s = now_s
        pulse = self._pulse
        has_work = pulse.is_busy or self._has_messages()
        if not has_work or pulse.num_steps != self._num_steps:
            self.late_s = 0.0
        elif now_s > pulse.due_s:
            self.late_s += elapsed_s
        self._num_steps = pulse.num_steps

    @property
    def num_steps(self) -> int:
        """Steps completed since the start."""
        return self._pulse.num_steps

    @property
    def limit_s(self) -> float:
        """How late the loop may be before it counts as stuck."""
        is_first = self._is_patient or self._pulse.num_steps < NUM_FIRST_STEPS
        return self._stuck_after_s * (FIRST_STEPS_FACTOR if is_first else 1.0)

    @property
    def is_stuck(self) -> bool:
        return self.late_s > self.limit_s

    @property
    def is_hopeless(self) -> bool:
        """Whether the process should end, so that another one takes its place."""
        return self.late_s > HOPELESS_FACTOR * self.limit_s
