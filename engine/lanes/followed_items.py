"""Shows the outputs so far of items that somebody follows, such as a response in the background that is streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from engine.lanes.pulled_item import PulledItem
from engine.wire.item_messages import encode
from engine.wire.redis_keys import FOLLOWED_KEY, output_key

INTERVAL_S = 0.2
EXPIRES_S = 60


class FollowedItems:
    """Writes outputs to Redis, as a task of the I/O thread. `held` returns the items that the engine has.

    Whole outputs are written, so it does not matter what another engine had, or Redis before it restarted.
    """

    def __init__(self, redis: Any, held: Callable[[], Collection[PulledItem]]) -> None:
        self._redis = redis
        self._held = held
        self._num_shown: dict[bytes, int] = {}  # tokens, by stream entry

    async def show_outputs(self) -> None:
        """Write the outputs that have grown, from time to time, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            if not self._held():
                continue
            followed = set(await self._redis.zrange(FOLLOWED_KEY, 0, -1))
            if not followed:
                continue
            before, self._num_shown = self._num_shown, {}
            for pulled in list(self._held()):
                item = pulled.item
                if str(item.item_id).encode() not in followed:
                    continue
                output = pulled.output_so_far()
                self._num_shown[pulled.entry_id] = len(output.token_ids)
                if len(output.token_ids) > before.get(pulled.entry_id, 0):
                    await self._redis.set(output_key(item.item_id, item.epoch), encode(output), ex=EXPIRES_S)
