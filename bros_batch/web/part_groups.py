"""Asks the engine about many prompts in groups, each of which is rejected or answered as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from engine.wire.limits import MAX_ITEM_TOKENS
from engine.wire.protocol import MAX_PARTS_AT_ONCE, PartEnd, PartsFinished
from engine.wire.request_terms import Part

# A group has no more tokens than this, unless one prompt has more. While one group is computed, the next one waits in
# the engine.
MAX_GROUP_TOKENS = 1_000_000
GROUPS_AT_ONCE = 2


async def ask_in_groups(
    ask: Callable[[Sequence[Part]], Awaitable[PartsFinished]], parts: Sequence[Part], num_shared_tokens: int
) -> list[PartEnd]:
    """Return what `ask` returns for the parts, whose prompts begin with so many equal tokens.

    The first error ends all groups and is raised at once.
    """
    groups = list(_groups(parts, num_shared_tokens))
    if len(groups) == 1:
        return (await ask(groups[0])).parts
    room = asyncio.Semaphore(GROUPS_AT_ONCE)

    async def answer(group: Sequence[Part]) -> PartsFinished:
        async with room:
            return await ask(group)

    try:
        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(answer(group)) for group in groups]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [end for task in found for end in task.result().parts]


def _groups(parts: Sequence[Part], num_shared_tokens: int) -> Iterator[Sequence[Part]]:
    """Yield the parts in groups, each of which fits into one message to the engine."""
    most = MAX_PARTS_AT_ONCE
    if num_shared_tokens:  # the engine counts them for each part
        most = max(1, min(most, (MAX_ITEM_TOKENS - MAX_GROUP_TOKENS) // num_shared_tokens))
    first, num_tokens = 0, num_shared_tokens
    for index, part in enumerate(parts):
        num_tokens += len(part.token_ids)
        if index > first and (index - first >= most or num_tokens > MAX_GROUP_TOKENS):
            yield parts[first:index]
            first, num_tokens = index, num_shared_tokens + len(part.token_ids)
    yield parts[first:]
