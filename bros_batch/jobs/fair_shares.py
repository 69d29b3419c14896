"""How owners share a model's stream: by weight, counted in tokens that have to be computed.

Each owner has an account of the tokens that were queued for it, divided by its weight. The next item is that of the
owner with the smallest account. An owner that has just come starts with the smallest account of the others, so it gets
neither credit for the time before nor has to wait. Accounts matter only while several owners have work.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from redis import Redis

KEPT_S = 3600
# An item costs something even if nothing of it has to be computed.
LEAST_TOKENS = 1.0
MAX_STEPS = 256


@dataclass(frozen=True, slots=True)
class Share:
    """An owner with work: its weight, and the tokens of its next items."""

    weight: float
    item_tokens: float

    def charge(self, tokens: float) -> float:
        return max(tokens, LEAST_TOKENS) / self.weight


class FairShares:
    """The accounts of owners, in Redis, so that every worker continues where another one has stopped.

    They are read and written under the lock of the model's prepare. If they are lost, all owners start anew.
    """

    def __init__(self, redis: Redis, model: str) -> None:
        self._redis = redis
        self._key = f"bros:shares:{model}"
        self._accounts: dict[str, float] = {}
        self._shares: Mapping[str, Share] = {}

    def start_anew(self) -> None:
        """Let all owners begin with equal accounts, because the items that waited so far are taken back."""
        self._redis.delete(self._key)

    def owners(self) -> set[str]:
        """The owners among whom items were divided last."""
        return {_text(name) for name in self._redis.hkeys(self._key)}

    def divide(self, shares: Mapping[str, Share], count: int) -> dict[str, int]:
        """How many of the next `count` items each owner gets, those with the smallest accounts first."""
        stored = self._redis.hgetall(self._key)
        known = {_text(name): float(value) for name, value in stored.items()}
        known = {owner: known[owner] for owner in shares if owner in known}
        least = min(known.values(), default=0.0)
        self._shares = shares
        self._accounts = {owner: known.get(owner, least) - least for owner in shares}
        line = [(account, owner) for owner, account in self._accounts.items()]
        heapq.heapify(line)
        counts = dict.fromkeys((owner for _, owner in sorted(line)), 0)
        step = max(count // MAX_STEPS, 1)
        left = count
        while left > 0:
            account, owner = line[0]
            given = min(step, left)
            counts[owner] += given
            left -= given
            share = shares[owner]
            heapq.heapreplace(line, (account + share.charge(share.item_tokens) * given, owner))
        return counts

    def charge(self, tokens: Mapping[str, float]) -> None:
        """Add what has been queued for owners to their accounts."""
        for owner, queued in tokens.items():
            self._accounts[owner] += self._shares[owner].charge(queued)
        pipeline = self._redis.pipeline()
        pipeline.delete(self._key)
        pipeline.hset(self._key, mapping={owner: repr(value) for owner, value in self._accounts.items()})
        pipeline.expire(self._key, KEPT_S)
        pipeline.execute()


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
