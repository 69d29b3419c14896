"""The answers that a client of an engine waits for to its requests of several prompts."""

from __future__ import annotations

import asyncio

from engine.wire.engine_errors import EngineGone, EngineRejected
from engine.wire.protocol import Finished, PartsFinished, Rejected

Answer = PartsFinished | Finished


class PartsAnswers:
    """A future for each request without an answer, by its id."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[Answer]] = {}

    def expect(self, request_id: str) -> asyncio.Future[Answer]:
        """Return the future answer to a request."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        return answer

    def forget(self, request_id: str) -> bool:
        """No longer expect an answer. Returns whether the request had none."""
        return self._waiting.pop(request_id, None) is not None

    def give(self, request_id: str, message: Answer | Rejected) -> None:
        """Pass an answer, or a rejection, to whoever waits for it."""
        if (answer := self._waiting.pop(request_id, None)) is None or answer.done():
            return
        if isinstance(message, Rejected):
            answer.set_exception(EngineRejected.of(message))
        else:
            answer.set_result(message)

    def end(self, gone: EngineGone) -> None:
        """No more answers come."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(type(gone)(str(gone)))
        self._waiting.clear()
