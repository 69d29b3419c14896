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

log = logging.getLogger("engine.threads")

TASKS = Path("/proc/self/task")

# The CPU counts as busy if the threads of this process have to wait for it for this share of the time that they want to
# run, and as free below the other.
BUSY_SHARE, FREE_SHARE = 0.3, 0.15
# What steps take with a number of threads is measured over so many of them, and at least this time; in a trial, over
# twice as many.
WINDOW_STEPS, WINDOW_S = 4, 0.25
# A number that was tried in vain is tried again after so many windows, and then after twice as many each time.
FIRST_PAUSE, LONGEST_PAUSE = 4, 256


def cpu_times_s() -> tuple[float, float] | None:
    """The time that the threads of this process have run, and the time that they were ready but had to wait for a CPU,
    in seconds; None where the operating system does not say (only Linux does)."""
    total_running_ns = total_waiting_ns = 0
    for task in TASKS.glob("*/schedstat"):
        try:
            running_ns, waiting_ns, _ = task.read_bytes().split()
        except OSError:  # this thread has just ended
            continue
        except ValueError:
            return None
        total_running_ns += int(running_ns)
        total_waiting_ns += int(waiting_ns)
    return (total_running_ns / 1e9, total_waiting_ns / 1e9) if total_running_ns else None


def _waiting_share(before: tuple[float, float] | None, now: tuple[float, float] | None) -> float | None:
    """The share of the time that the threads wanted to run and had to wait, between two results of `cpu_times_s`."""
    if before is None or now is None:
        return None
    running_s, waiting_s = now[0] - before[0], now[1] - before[1]
    return waiting_s / (running_s + waiting_s) if running_s + waiting_s > 0 else 0.0


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
        self._wanted = most  # the number that the latest window spoke for
        self._tried_from: int | None = None  # the number before the trial under way
        self._before = 0.0  # slowdown, in proportion to what is expected, before the trial
        self._num_windows = 0
        # By number of threads: how long to wait after the next trial in vain, and the window until which to wait.
        self._pauses: dict[int, int] = {}
        self._paused_until: dict[int, int] = {}
        self._begin_window(cpu_times())

    def after_step(self, step_s: float, expected_s: float) -> None:
        """Take note of a step, and of how long it takes by the coefficients of the cost model."""
        if expected_s <= 0:
            return
        self._num_steps += 1
        self._steps_s += step_s
        self._expected_s += expected_s
        num_needed = WINDOW_STEPS if self._tried_from is None else 2 * WINDOW_STEPS
        if self._num_steps < num_needed or self._clock() - self._started_s < WINDOW_S:
            return
        slowdown, times = self._steps_s / self._expected_s, self._cpu_times()
        if self._tried_from is None:
            self._maybe_try(slowdown, _waiting_share(self._times, times))
        else:
            self._judge(self._tried_from, slowdown)
        self._num_windows += 1
        self._begin_window(times)

    def _begin_window(self, times: tuple[float, float] | None) -> None:
        self._num_steps = 0
        self._steps_s = self._expected_s = 0.0
        self._started_s = self._clock()
        self._times = times

    def _maybe_try(self, slowdown: float, share: float | None) -> None:
        if share is None:
            return
        count = self.count
        if share > BUSY_SHARE:
            count = max(1, count // 2)
        elif share < FREE_SHARE:
            count = min(self._most, count * 2)
        # The machine may have changed in the middle of this window. Only from the second one of a kind on does
        # `slowdown` belong to the machine as it is now.
        is_settled, self._wanted = count == self._wanted, count
        if count == self.count or not is_settled or self._num_windows < self._paused_until.get(count, 0):
            return
        self._tried_from, self._before = self.count, slowdown
        self._set(count)

    def _judge(self, before: int, slowdown: float) -> None:
        """End a trial: keep the number, or return to the one before."""
        self._tried_from = None
        if slowdown < self._before:
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
