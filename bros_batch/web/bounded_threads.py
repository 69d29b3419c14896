"""Threads for calls that block, such as queries: few of them, and nobody waits for one without a limit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class BoundedThreads:
    """Runs blocking calls on `num_threads` threads.

    A call cannot be interrupted. One that takes too long goes on, and keeps its thread until it returns; only its
    caller stops waiting. While a database hangs, the calls that wait for it therefore never hold more than these
    threads.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads = num_threads
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._free = asyncio.Semaphore(num_threads)

    async def run(self, call: Callable[[], T], timeout_s: float) -> T:
        """Return the result of `call`. Raises TimeoutError if it has not come after `timeout_s`, the time until a
        thread was free included."""
        loop = asyncio.get_running_loop()

        def release(_ended: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended first
                loop.call_soon_threadsafe(self._free.release)

        async with asyncio.timeout(timeout_s):
            await self._free.acquire()
            future = self._executor.submit(call)
            future.add_done_callback(release)
            return await asyncio.wrap_future(future)

    async def close(self, timeout_s: float) -> None:
        """Take no more calls, and wait for those that run, also for those whose callers have stopped waiting. After
        `timeout_s`, what still runs goes on by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for _ in range(self._num_threads):
                    await self._free.acquire()
