"""Which errors mean that a service or the disk cannot be used for now, so that the same work may succeed later. A task
that ran into its time limit may succeed later too: whatever took so long has been counted against it."""

from __future__ import annotations

from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy.exc import DBAPIError, OperationalError

_REDIS_OUTAGES = (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError)


def is_outage(error: Exception) -> bool:
    """Whether `error` is about a service or the disk, and not about the work itself."""
    if isinstance(error, DBAPIError):
        return isinstance(error, OperationalError) or error.connection_invalidated
    if isinstance(error, RedisError):
        # MISCONF: Redis accepts no writes, because it cannot write its own file; usually the disk is full. The word is
        # not always the first one: redis-py and Lua put theirs before it.
        return isinstance(error, _REDIS_OUTAGES) or "MISCONF" in str(error)
    return isinstance(error, BrokerError | OSError | SoftTimeLimitExceeded)
