"""The connection of a process to the Redis of the jobs."""

from __future__ import annotations

from functools import cache

from redis import Redis

from bros_batch.settings import get_settings


@cache
def get_redis() -> Redis:
    """The Redis client of this process. It connects on first use, and again after a fork."""
    url = get_settings().resolved_redis_url
    return Redis.from_url(url, socket_connect_timeout=5.0, socket_timeout=30.0)
