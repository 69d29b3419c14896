"""The limits of a key on chat: requests and tokens per minute, as buckets in Redis that all web servers share.

A bucket is refilled all the time, and holds what one minute allows. A request needs one full request, and some tokens.
Its prompt and, at its end, its output are taken from the tokens, which may leave a debt. So the size of a request is
never guessed, and none is too large for its limit. While Redis does not answer, nothing is limited.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.types import Scope

from bros_batch.web.api_key import Key
from bros_batch.web.errors import ApiError
from bros_batch.web.owners import key_of

logger = logging.getLogger(__name__)

PATIENCE_S = 1.0
# Levels and waits of both buckets. Nothing is taken if one of them would have to wait.
TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local answer = {}
local taken = true
local levels = {}
for n = 1, 2 do
    local limit, cost, needed = tonumber(ARGV[n]), tonumber(ARGV[n + 2]), tonumber(ARGV[n + 4])
    local stored = redis.call('HMGET', KEYS[n], 'level', 'at')
    local level = limit
    if stored[1] then
        level = math.min(limit, stored[1] + math.max(now - stored[2], 0) * limit / 60)
    end
    local wait = 0
    if limit > 0 and level < needed then
        wait = (needed - level) * 60 / limit
        taken = false
    end
    levels[n] = level - cost
    answer[n] = string.format('%.3f', level - cost)
    answer[n + 2] = string.format('%.3f', wait)
end
if taken then
    for n = 1, 2 do
        local limit = tonumber(ARGV[n])
        if limit > 0 then
            redis.call('HSET', KEYS[n], 'level', string.format('%.6f', levels[n]), 'at', string.format('%.6f', now))
            redis.call('EXPIRE', KEYS[n], math.ceil(60 + math.max(-levels[n], 0) * 60 / limit))
        end
    end
end
return answer
"""


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Admits requests, and counts what they compute. A key without limits costs nothing."""

    redis_url: str
    _redis: list[Redis] = field(default_factory=list)
    _tasks: set[asyncio.Task[object]] = field(default_factory=set)

    async def admit(self, request: Request, prompt_tokens: int) -> Callable[[int], None] | None:
        """Let a request run, or raise ApiError 429, which says what to wait for.

        Returns what has to be called with the tokens of the output at the end, if they are limited.
        """
        key = key_of(request)
        if key is None or (key.terms.requests_per_minute is None and key.terms.tokens_per_minute is None):
            return None
        taken = await self._take(key, 1, prompt_tokens, 1, 1)
        if taken is None:
            return None
        limits = {"requests": key.terms.requests_per_minute, "tokens": key.terms.tokens_per_minute}
        headers: dict[str, str] = {}
        for place, (name, limit) in enumerate(limits.items()):
            if limit is not None:
                level = max(taken[place], 0.0)
                headers |= {
                    f"x-ratelimit-limit-{name}": str(limit),
                    f"x-ratelimit-remaining-{name}": str(int(level)),
                    f"x-ratelimit-reset-{name}": f"{(limit - level) * 60 / limit:.3f}s",
                }
        request.scope["state"]["rate_headers"] = headers
        wait_s = max(taken[2:])
        if wait_s > 0:
            name = "requests" if taken[2] >= taken[3] else "tokens"
            message = (
                f"This API key may use {limits[name]:,} {name} per minute, and has used them. Try again in "
                f"{wait_s:.1f} s, or use /v1/batches, which has no such limit."
            )
            raise ApiError(429, message, code="rate_limit_exceeded", retry_after_s=wait_s)
        return None if key.terms.tokens_per_minute is None else partial(self._spend, key)

    async def close(self) -> None:
        for redis in self._redis:
            await redis.aclose()

    def _spend(self, key: Key, tokens: int) -> None:
        """Take tokens that were computed, without waiting for Redis."""
        task = asyncio.get_running_loop().create_task(self._take(key, 0, tokens, -1e15, -1e15))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(
        self, key: Key, requests: int, tokens: int, needed_requests: float, needed_tokens: float
    ) -> list[float] | None:
        if not self._redis:
            made = Redis.from_url(
                self.redis_url, socket_connect_timeout=PATIENCE_S, socket_timeout=PATIENCE_S
            )
            self._redis.append(made)
        terms = key.terms
        limits = (terms.requests_per_minute or 0, terms.tokens_per_minute or 0)
        names = (f"bros:rate:{key.id}:requests", f"bros:rate:{key.id}:tokens")
        values = (*limits, requests, tokens, needed_requests, needed_tokens)
        try:
            answer = await self._redis[0].eval(TAKE, 2, *names, *map(str, values))
        except (RedisError, OSError) as error:
            logger.warning("the limits of %s are not checked, since Redis does not answer: %s", key.id, error)
            return None
        return [float(each) for each in answer]


def rate_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers that say how much of its limits a request's key has left."""
    headers: dict[str, str] = scope["state"].get("rate_headers", {})
    return [(name.encode(), value.encode()) for name, value in headers.items()]
