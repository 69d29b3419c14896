"""What a scheduling policy decides, and which policy a configuration asks for."""

from __future__ import annotations

from typing import Protocol

from engine.core.allocator import Allocator
from engine.core.backlog import Backlog
from engine.core.batch import Batch
from engine.core.config import SchedulerConfig
from engine.core.cost_model import CostModel
from engine.core.kv.cache import KVCacheManager
from engine.core.policy.bros import BrosPolicy
from engine.core.policy.dial import Dial
from engine.core.policy.fixed_budget import FixedBudgetPolicy
from engine.core.policy.pace import Pace
from engine.core.request import Request
from engine.core.terms import Policy


class SchedulingPolicy(Protocol):
    """Decides which requests a step computes. Its `backlog` says how many rows each lane may have, and its `allocator`
    works with the policy's own victim order."""

    backlog: Backlog
    allocator: Allocator

    def sort_key(self, request: Request) -> tuple[float, float, int]:
        """The order among the requests of a lane: the most urgent has the smallest key."""
        ...

    def enqueue(self, request: Request) -> None:
        """Put a request into the backlog: it arrived, or has to start again."""
        ...

    def pack(self, batch: Batch) -> None:
        """Fill an empty batch, admitting waiting requests where there is room for them."""
        ...


def policy_for(
    config: SchedulerConfig, kv: KVCacheManager, cost: CostModel, pace: Pace, dial: Dial
) -> SchedulingPolicy:
    """The policy that the configuration names."""
    if config.policy is Policy.BROS:
        return BrosPolicy(config, kv, cost, pace, dial)
    return FixedBudgetPolicy(config, kv, cost)
