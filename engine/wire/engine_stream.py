"""The output of one request as a client of an engine receives it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from engine.wire.engine_errors import EngineGone, EngineRejected
from engine.wire.protocol import Finished, Rejected, Tokens


class EngineStream:
    """The output of one request: an async iterator of `Tokens` messages that ends with a `Finished`.

    The iteration raises EngineRejected or EngineGone. Use it with `async with`: leaving the block early cancels the
    request.
    """

    def __init__(self, request_id: str, forget: Callable[[str, bool], None]) -> None:
        """`forget` is called with the id when no more messages are wanted, and with whether the engine is to stop."""
        self._id = request_id
        self._forget = forget
        self._messages: deque[Tokens | Finished | Rejected | EngineGone] = deque()
        self._arrived = asyncio.Event()
        self._over = False

    def put(self, message: Tokens | Finished | Rejected | EngineGone) -> None:
        """Add a message that the connection received, or the reason why no more will come."""
        self._messages.append(message)
        self._arrived.set()

    async def __aenter__(self) -> EngineStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.cancel()

    async def __aiter__(self) -> AsyncIterator[Tokens | Finished]:
        while not self._over:
            yield await self._next()

    async def _next(self) -> Tokens | Finished:
        while not self._messages:
            self._arrived.clear()
            await self._arrived.wait()
        message = self._messages.popleft()
        match message:
            case Finished():
                self._over = True
            case Rejected():
                self._over = True
                raise EngineRejected.of(message)
            case EngineGone():
                self._over = True
                raise type(message)(str(message))
        return message

    def cancel(self) -> None:
        """Stop the request if it is still running. No further messages arrive."""
        self._forget(self._id, not self._over)
        self._over = True
