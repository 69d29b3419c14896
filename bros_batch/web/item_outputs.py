"""Outputs of items that an engine is computing: they are in Redis for as long as somebody follows them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.wire.decoding import DECODE_ERRORS
from engine.wire.item_messages import Choice
from engine.wire.redis_keys import FOLLOWED_KEY, output_key

logger = logging.getLogger(__name__)

PATIENCE_S = 1.0
FOLLOWED_S = 10.0  # after the last look at an output
KEPT_S = 60  # the list of what is followed, if nobody follows anything

ERRORS: tuple[type[Exception], ...] = (RedisError, OSError, *DECODE_ERRORS)

_decode = msgspec.msgpack.Decoder(Choice).decode


@dataclass(frozen=True, slots=True)
class ItemOutputs:
    """Asks engines to show the outputs of items, and reads them."""

    redis_url: str
    _redis: list[Redis] = field(default_factory=list)

    async def so_far(self, item_id: int, epoch: int) -> Choice | None:
        """Return the output of an item up to now; None if it is not known. From now on, an engine shows it for a
        while."""
        if not self._redis:
            self._redis.append(
                Redis.from_url(self.redis_url, socket_connect_timeout=PATIENCE_S, socket_timeout=PATIENCE_S)
            )
        now_s = time.time()
        pipeline = self._redis[0].pipeline(transaction=False)
        pipeline.zadd(FOLLOWED_KEY, {str(item_id): now_s + FOLLOWED_S})
        pipeline.zremrangebyscore(FOLLOWED_KEY, "-inf", now_s)
        pipeline.expire(FOLLOWED_KEY, KEPT_S)
        pipeline.get(output_key(item_id, epoch))
        try:
            *_, found = await pipeline.execute()
            return None if found is None else _decode(found)
        except ERRORS as error:
            logger.warning("the output of item %d is not streamed before it ends: %s", item_id, error)
            return None

    async def close(self) -> None:
        for redis in self._redis:
            await redis.aclose()
