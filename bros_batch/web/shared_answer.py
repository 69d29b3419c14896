"""A question that many ask at once and that is answered once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedAnswer(Generic[T]):
    """Those who ask while an answer is being found all get that answer, so they cost no more than one of them."""

    def __init__(self) -> None:
        self._finding: asyncio.Task[T] | None = None

    def of(self, find: Callable[[], Coroutine[Any, Any, T]]) -> Awaitable[T]:
        """Return what `find` returns, or what it is about to return to somebody else."""
        if self._finding is None or self._finding.done():
            self._finding = asyncio.create_task(find())
        return asyncio.shield(self._finding)  # one of them may go away
