"""A limit on the CPU time that one line may take, so that a line that takes forever fails alone.

CPU time and not elapsed time: on a busy machine, or one that was suspended, everything takes long. Celery's limits on
whole tasks (`celery_app`) are the last resort, for code that cannot be interrupted.
"""

from __future__ import annotations

import signal
import threading
from functools import cache
from types import FrameType, TracebackType

LINE_CPU_LIMIT_S = 20.0
TICKS = 4  # of a shared timer, in the time that a line may take


class CpuLimitExceeded(Exception):
    """The work in a `cpu_limit` block took more CPU time than allowed."""


class limited_lines:
    """Lets the `cpu_limit` blocks in this block share one timer, which it would take as long to set twice for each line
    as to read some lines. A line is then stopped at its limit or up to a quarter later.
    """

    def __init__(self) -> None:
        self._is_main = threading.current_thread() is threading.main_thread()
        self._seconds = 0.0
        self._is_in_line = False
        self._num_ticks = 0  # of the timer, since the line began

    def __enter__(self) -> None:
        global _shared
        if self._is_main:
            _shared = self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _shared
        if self._is_main:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            _shared = None

    def begin(self, seconds: float) -> None:
        """Begin a line."""
        if seconds != self._seconds:
            self._seconds = seconds
            _handle_signal()
            signal.setitimer(signal.ITIMER_PROF, seconds / TICKS, seconds / TICKS)
        self._num_ticks = 0
        self._is_in_line = True

    def end(self) -> None:
        """End the line."""
        self._is_in_line = False

    def has_ticked(self) -> bool:
        """Take note of a tick. Returns whether the line has had its time: the first tick may come at once."""
        self._num_ticks += 1
        return self._is_in_line and self._num_ticks > TICKS


_shared: limited_lines | None = None


def _stop(_number: int, _frame: FrameType | None) -> None:
    if _shared is None or _shared.has_ticked():
        raise CpuLimitExceeded


@cache  # to ask for the handler, or to set it, would take longer than most lines
def _handle_signal() -> None:
    signal.signal(signal.SIGPROF, _stop)


class cpu_limit:
    """Raise `CpuLimitExceeded` in the block when this process has spent that many seconds of CPU time in it.

    Works in the main thread, where tasks run; elsewhere there is no limit. Native code is interrupted when it returns.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if not self._is_main:
            return
        if _shared is not None:
            _shared.begin(self._seconds)
            return
        _handle_signal()
        signal.setitimer(signal.ITIMER_PROF, self._seconds)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._is_main:
            return
        if _shared is not None:
            _shared.end()
            return
        signal.setitimer(signal.ITIMER_PROF, 0.0)
