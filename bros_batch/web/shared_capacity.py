"""Shares of a limited resource, such as memory for large bodies, first come, first served."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from bros_batch.web.errors import ApiError

# How long a request waits for its share before it is rejected.
WAIT_S = 20.0
# A waiting request holds what uvicorn has read of its body.
MAX_WAITING = 128


class SharedCapacity:
    """`capacity` units of a resource, of which each request reserves some."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._free = capacity
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def reserve(self, units: int) -> AsyncIterator[None]:
        """Hold `units`, at most the whole capacity. Raises ApiError 503 if others hold them for longer than WAIT_S."""
        units = min(units, self._capacity)
        if self._waiting or units > self._free:
            await self._wait(units)
        else:
            self._free -= units
        try:
            yield
        finally:
            self._free += units
            self._admit()

    async def _wait(self, units: int) -> None:
        if len(self._waiting) >= MAX_WAITING:
            raise _busy()
        admitted = asyncio.get_running_loop().create_future()
        entry = (units, admitted)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(WAIT_S):
                await admitted
        except BaseException as error:
            if admitted.done() and not admitted.cancelled():  # admitted and cancelled at the same moment
                self._free += units
            else:
                self._waiting.remove(entry)
            self._admit()
            if isinstance(error, TimeoutError):
                raise _busy() from None
            raise

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            units, admitted = self._waiting[0]
            if admitted.done():  # cancelled; its task removes it
                return
            self._waiting.popleft()
            self._free -= units
            admitted.set_result(None)


def _busy() -> ApiError:
    message = "The server is busy with other large requests. Try again in a moment."
    return ApiError(503, message, code="overloaded", retry_after_s=1.0)
