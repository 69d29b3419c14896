"""Shares of a limited resource, such as memory for large bodies: first come, first served, and half for one address."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from bros_batch.addresses import is_loopback
from bros_batch.web.errors import ApiError

# How long a request waits for its share before it is rejected.
WAIT_S = 20.0
# A waiting request holds what uvicorn has read of its body.
MAX_WAITING = 128


class SharedCapacity:
    """`capacity` units of a resource, of which each request holds a share that may grow.

    The requests of one address hold at most half of the units, and are at most half of those that wait. This machine
    may hold all, since it may be a proxy.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._shares: list[Share] = []  # oldest first

    @contextlib.asynccontextmanager
    async def share(self, address: str | None) -> AsyncIterator[Share]:
        """Give a request from `address` a share. It is empty at first."""
        share = Share(self, None if address is None or is_loopback(address) else address)
        self._shares.append(share)
        try:
            yield share
        finally:
            self._shares.remove(share)
            self.admit()

    def check_queue(self, newest: Share) -> None:
        """Reject a share if too many wait, itself included."""
        waiting = [each.address for each in self._shares if each.wanted]
        of_same_address = 0 if newest.address is None else waiting.count(newest.address)
        if len(waiting) > MAX_WAITING or of_same_address > MAX_WAITING // 2:
            raise _busy()

    def admit(self) -> None:
        """Let shares grow, oldest first. The oldest may always grow: if all waited for each other, none would end."""
        held = Counter[str | None]()
        for share in self._shares:
            held[share.address] += share.units
        free = self._capacity - held.total()
        for share in self._shares:
            if not share.wanted:
                continue
            if share is not self._shares[0]:
                if share.wanted > free:
                    return  # nobody overtakes
                if share.address is not None and held[share.address] + share.wanted > self._capacity // 2:
                    continue
            free -= share.wanted
            held[share.address] += share.wanted
            share.admit()


class Share:
    """What one request holds: `units`, and soon `wanted` more."""

    def __init__(self, capacity: SharedCapacity, address: str | None) -> None:
        self._capacity = capacity
        self._admitted = asyncio.Event()
        self.address = address
        self.units = 0
        self.wanted = 0

    async def grow(self, units: int) -> None:
        """Hold `units` more. Raises ApiError 503 if others hold them for longer than WAIT_S."""
        self.wanted = units
        self._admitted.clear()
        self._capacity.admit()
        if not self.wanted:
            return
        try:
            self._capacity.check_queue(self)
            async with asyncio.timeout(WAIT_S):
                await self._admitted.wait()
        except TimeoutError:
            raise _busy() from None
        finally:
            if self.wanted:
                self.wanted = 0
                self._capacity.admit()  # others may have waited behind this one

    def admit(self) -> None:
        self.units += self.wanted
        self.wanted = 0
        self._admitted.set()


def _busy() -> ApiError:
    message = "The server is busy with other large requests. Try again in a moment."
    return ApiError(503, message, code="overloaded", retry_after_s=1.0)
