"""Suspects: items that an engine was computing when it died.

A death counts against the items of the steps that were under way then, and against no others. All of them but the cause
are innocent, so a suspect is taken in again, but computed apart from all other requests, in a forward pass of its own,
and only a few suspects run at a time. If the engine dies again in such a pass, that one item is the cause.

The counts are in Redis, where every engine of the model finds them. A process that takes over the items of another
machine does not know in which step that one died. So an item that was taken over very often becomes a suspect too; it
runs while no other suspect does, and Redis counts how often that was tried.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from engine.step_mark import LastStep

log = logging.getLogger("engine.pull")

# Each suspect adds a forward pass to every step, for which chats wait.
MAX_RUNNING = 4
# An item that engines started this often is a suspect, whatever is known of their deaths. Nobody restarts an engine so
# often by hand while it works on the same item.
OFTEN_STARTED = 10
EXPIRES_S = 7 * 24 * 3600  # after the last death
_ITEM_OF_REQUEST = re.compile(r"b(\d+):\d+-\d+\.\d+")


def suspects_key(model: str) -> str:
    """Key of a hash with two counts per item: deaths, and deaths while it was computed apart.

    An item keeps them when its entry is replaced, as it is when its job is paused and continued.
    """
    return f"bros:suspects:{model}"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known against an item: how often engines started its entry, how often they died in a step that computed
    it, and how often in a pass of its own."""

    starts: int
    deaths: int
    deaths_apart: int

    @property
    def is_suspect(self) -> bool:
        return self.deaths > 0 or self.is_often_started

    @property
    def is_often_started(self) -> bool:
        return self.starts >= OFTEN_STARTED

    def failure(self, max_attempts: int) -> str | None:
        """Why the item is not started again, or None if it is."""
        if self.deaths_apart >= max_attempts:
            return (
                f"the engine died {self.deaths} times while it computed this item, and {self.deaths_apart} of those "
                "times it computed nothing else"
            )
        if self.starts >= OFTEN_STARTED + max_attempts:
            return f"engines went away {self.starts} times while they had this item"
        return None


class Suspects:
    """The suspects among an engine's items: which there are, and which wait for their turn."""

    def __init__(self, redis: Any, model: str, last_step: LastStep) -> None:
        self._redis = redis
        self._key = suspects_key(model)
        self._last_step: LastStep | None = last_step
        # Then the deaths of the last run are counted exactly, and its starts need not be.
        self.knows_last_step = last_step.is_known
        self._waiting: dict[bytes, Record] = {}
        self._running: dict[bytes, Record] = {}

    async def count_deaths(self) -> None:
        """Count the death of the process before this one, if it died in a step. Does so once."""
        if self._last_step is None:
            return
        found = map(_ITEM_OF_REQUEST.fullmatch, self._last_step.request_ids)
        items = sorted({match[1] for match in found if match})
        if items:
            async with self._redis.pipeline(transaction=True) as pipe:
                for item in items:
                    pipe.hincrby(self._key, item, 1)
                    if self._last_step.is_apart:
                        pipe.hincrby(self._key, f"{item} apart", 1)
                pipe.expire(self._key, EXPIRES_S)
                await pipe.execute()
            log.warning(
                "the last run of this engine died while it computed %s. They may have caused it, so each is "
                "now computed in a pass of its own",
                "1 item" if len(items) == 1 else f"{len(items)} items",
            )  # fmt: skip
            log.info("items that may have caused the death: %s", ", ".join(items))
        self._last_step = None

    async def records(self, item_ids: Sequence[int | None], starts: Sequence[int]) -> list[Record]:
        """The records of items, given how often the entry of each was started. Nothing is known against what has no
        id."""
        if not item_ids:
            return []
        if not await self._redis.exists(self._key):  # as a rule
            return [Record(each, 0, 0) for each in starts]
        fields = [field for item_id in item_ids for field in (f"{item_id}", f"{item_id} apart")]
        counts = [int(count or 0) for count in await self._redis.hmget(self._key, fields)]
        return [Record(*each) for each in zip(starts, counts[::2], counts[1::2], strict=True)]

    def add(self, entry_id: bytes, record: Record) -> None:
        """Let an item wait for its turn."""
        self._waiting[entry_id] = record

    def has_waiting(self, held: Collection[bytes]) -> bool:
        """Whether any of the items `held` waits for its turn."""
        self._waiting = {entry_id: record for entry_id, record in self._waiting.items() if entry_id in held}
        return bool(self._waiting)

    def next_to_start(self, held: Collection[bytes]) -> tuple[bytes, Record] | None:
        """The next of the items `held` that may start now, if any."""
        if not self.has_waiting(held):
            return None
        self._running = {entry_id: record for entry_id, record in self._running.items() if entry_id in held}
        entry_id, record = next(iter(self._waiting.items()))
        one_only = any(one.is_often_started for one in (record, *self._running.values()))
        if len(self._running) >= (1 if one_only else MAX_RUNNING):
            return None
        return entry_id, record

    def has_started(self, entry_id: bytes) -> None:
        """Count an item as running, as long as it is held."""
        self._running[entry_id] = self._waiting.pop(entry_id)
