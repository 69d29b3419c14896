"""The values of several asynchronous generators as they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merged(generators: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[T]:
    """Yield what all of these yield. Closing the generator early closes all of them.

    The first error of one of them ends the others, and is raised as it is.
    """
    queue: asyncio.Queue[T | None] = asyncio.Queue()

    async def pump(generator: AsyncGenerator[T]) -> None:
        async with contextlib.aclosing(generator) as values:
            async for value in values:
                queue.put_nowait(value)

    async def pump_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for generator in generators:
                    group.create_task(pump(generator))
        finally:
            queue.put_nowait(None)

    task = asyncio.create_task(pump_all())
    try:
        while (value := await queue.get()) is not None:
            yield value
        await task
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
