"""Locks in Redis that keep two workers from doing the same work at the same time.

They only save duplicate work: everything that is done under a lock must also be correct without it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

# A lock that has not been renewed for this long belongs to a dead worker.
LOCK_TTL_MS = 5_000
RENEW_INTERVAL_S = 1.0

# A lock that lasts longer than its TTL was taken before the clock was set back; it gets its TTL again.
_ACQUIRE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
_RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"
_RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"


class Lock:
    """A lock that is held for as long as it is renewed."""

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key
        self._token = secrets.token_hex(8)
        self._renew_at_s = 0.0

    def acquire(self) -> bool:
        self._renew_at_s = time.monotonic() + RENEW_INTERVAL_S
        return bool(self._redis.eval(_ACQUIRE, 1, self._key, self._token, LOCK_TTL_MS))

    def renew(self) -> None:
        """Renew the lock, unless that was done a moment ago."""
        if time.monotonic() < self._renew_at_s:
            return
        self._renew_at_s = time.monotonic() + RENEW_INTERVAL_S
        self._redis.eval(_RENEW, 1, self._key, self._token, LOCK_TTL_MS)

    def release(self) -> None:
        self._redis.eval(_RELEASE, 1, self._key, self._token)


@contextmanager
def try_lock(redis: Redis, name: str) -> Iterator[Lock | None]:
    """The lock `name`, or None while another worker holds it."""
    lock = Lock(redis, f"bros:lock:{name}")
    if not lock.acquire():
        yield None
        return
    try:
        yield lock
    finally:
        lock.release()


def claim_tick(redis: Redis, name: str) -> bool:
    """Whether the tick `name` may be sent: not while the last one waits, which after a while counts as lost."""
    return Lock(redis, _tick_key(name)).acquire()


def end_tick(redis: Redis, name: str) -> None:
    """Allow the next tick `name`, because this one has arrived."""
    redis.delete(_tick_key(name))


def _tick_key(name: str) -> str:
    return f"bros:tick:{name}"
