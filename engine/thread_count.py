"""How many threads compute on a CPU: fewer while other processes take it.

The threads of a step wait for each other dozens of times. On a busy machine the operating system suspends each of them
at other moments, for some milliseconds at a time, so that the step advances only while all of them happen to run. One
thread that never waits can then be several times as fast as two. Whether it is cannot be told in advance; so on a busy
machine, and only there, the engine tries the next lower number for a few steps, and keeps what was faster.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from statistics import median

log = logging.getLogger("engine.threads")

SCHEDSTAT = Path("/proc/thread-self/schedstat")

# The CPU counts as busy if the main thread waits for it for this share of the time that it wants to run, and as free
# below the other.
BUSY_SHARE, FREE_SHARE = 0.25, 0.1
# A comparison needs so many steps, and this much time, before it and after it.
WINDOW_STEPS, WINDOW_S = 4, 0.1
# A number of threads is kept if steps take at most this share of the time that they took with the one before.
KEPT_SHARE = 0.9
# A number that was tried in vain is tried again after so many windows, and then after twice as many each time.
FIRST_PAUSE, LONGEST_PAUSE = 16, 1024


def cpu_times_s() -> tuple[float, float] | None:
    """The time that the calling thread has run, and the time that it was ready but had to wait for a CPU, in seconds;
    None where the operating system does not say (only Linux does)."""
    try:
        running_ns, waiting_ns, _ = SCHEDSTAT.read_bytes().split()
    except (OSError, ValueError):
        return None
    return int(running_ns) / 1e9, int(waiting_ns) / 1e9


class ThreadCount:
    """Sets the number of threads after each step, as the machine allows.

    `use` sets the number; it is `most` at first. `cpu_times` is `cpu_times_s`; `clock` returns monotonic time in
    seconds.
    """

    def __init__(
        self,
        most: int,
        use: Callable[[int], None],
        clock: Callable[[], float],
        cpu_times: Callable[[], tuple[float, float] | None] = cpu_times_s,
    ) -> None:
        self.count = most
        self._most = most
        self._use = use
        self._clock = clock
        self._cpu_times = cpu_times
        self._tried_from: int | None = None  # the number before the trial under way
        self._before = 0.0  # slowdown before the trial
        self._num_windows = 0
        # By number of threads: how long to wait after the next trial in vain, and the window until which to wait.
        self._pauses: dict[int, int] = {}
        self._paused_until: dict[int, int] = {}
        self._begin_window()

    def after_step(self, slowdown: float) -> None:
        """Take note of a step that took `slowdown` times as long as the cost model's coefficients say."""
        self._slowdowns.append(slowdown)
        if len(self._slowdowns) < WINDOW_STEPS or self._clock() - self._started_s < WINDOW_S:
            return
        slowdown = median(self._slowdowns)
        if self._tried_from is not None:
            self._judge(self._tried_from, slowdown)
        else:
            self._maybe_try(slowdown)
        self._num_windows += 1
        self._begin_window()

    def _begin_window(self) -> None:
        self._slowdowns: list[float] = []
        self._started_s = self._clock()
        self._times = self._cpu_times()

    def _waiting_share(self) -> float | None:
        """The share of the time that this thread wanted to run and had to wait, since the window began."""
        before, now = self._times, self._cpu_times()
        if before is None or now is None:
            return None
        running_s, waiting_s = now[0] - before[0], now[1] - before[1]
        return waiting_s / (running_s + waiting_s) if running_s + waiting_s > 0 else 0.0

    def _maybe_try(self, slowdown: float) -> None:
        share = self._waiting_share()
        if share is None:
            return
        count = self.count
        if share > BUSY_SHARE:
            count = max(1, count // 2)
        elif share < FREE_SHARE:
            count = min(self._most, count * 2)
        if count != self.count and self._num_windows >= self._paused_until.get(count, 0):
            self._tried_from, self._before = self.count, slowdown
            self._set(count)

    def _judge(self, before: int, slowdown: float) -> None:
        """End a trial: keep the number, or return to the one before."""
        self._tried_from = None
        if slowdown <= KEPT_SHARE * self._before:
            self._pauses.clear()
            self._paused_until.clear()
            log.info(
                "computing on %d threads instead of %d: other processes %s",
                self.count, before, "take the CPU" if self.count < before else "leave the CPU free again",
            )  # fmt: skip
            return
        pause = self._pauses.get(self.count, FIRST_PAUSE)
        self._paused_until[self.count] = self._num_windows + pause
        self._pauses[self.count] = min(LONGEST_PAUSE, 2 * pause)
        self._set(before)

    def _set(self, count: int) -> None:
        self.count = count
        self._use(count)
