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


class CpuLimitExceeded(Exception):
    """The work in a `cpu_limit` block took more CPU time than allowed."""


def _stop(_number: int, _frame: FrameType | None) -> None:
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
        if self._is_main:
            _handle_signal()
            signal.setitimer(signal.ITIMER_PROF, self._seconds)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_main:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
