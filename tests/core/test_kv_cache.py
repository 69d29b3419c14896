"""The KV manager under random use: every invariant holds after every operation, and slots are never shared."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.core.kv_cache import KVCacheManager
from engine.core.request import Request
from engine.core.types import Lane
from tests.factories import request


class KVCacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.kv = KVCacheManager(num_blocks=12, block_size=4)
        self.requests: list[Request] = []

    @rule(lane=st.sampled_from(Lane))
    def new_request(self, lane):
        self.requests.append(request(lane=lane))

    @rule(pick=st.integers(0), num_tokens=st.integers(1, 17))
    def extend(self, pick, num_tokens):
        if not self.requests:
            return
        chosen = self.requests[pick % len(self.requests)]
        before, room = self.kv.slots(chosen), self.kv.room_tokens(chosen)
        slots = self.kv.extend(chosen, num_tokens)
        assert (slots is None) == (num_tokens > room)
        assert self.kv.slots(chosen) == before + (slots or [])
        chosen.num_computed_tokens += len(slots or [])

    @rule(pick=st.integers(0), keep=st.integers(0, 40))
    def truncate(self, pick, keep):
        if not self.requests:
            return
        chosen = self.requests[pick % len(self.requests)]
        before = self.kv.slots(chosen)
        assert self.kv.truncate(chosen, keep) == max(0, len(before) - keep)
        assert self.kv.slots(chosen) == before[:keep]
        assert chosen.num_computed_tokens == min(len(before), keep)

    @rule(pick=st.integers(0))
    def free(self, pick):
        if self.requests:
            self.kv.free(self.requests.pop(pick % len(self.requests)))

    @invariant()
    def sound(self):
        self.kv.check_integrity(self.requests)
        slots = [s for r in self.requests for s in self.kv.slots(r)]
        assert len(slots) == len(set(slots))
        assert all(0 <= s < self.kv.num_slots for s in slots)

    def teardown(self):
        for r in self.requests:
            self.kv.free(r)
        assert self.kv.num_free_blocks == 12
        assert self.kv.usage() == {Lane.RT: 0, Lane.BE: 0}


KVCacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestKVCache = KVCacheMachine.TestCase


def test_check_integrity_finds_a_block_in_two_hands():
    kv = KVCacheManager(num_blocks=4, block_size=4)
    first, second = request(), request()
    assert kv.extend(first, 3) and kv.extend(second, 3)
    second.extents[0].block = first.extents[0].block
    with pytest.raises(AssertionError):
        kv.check_integrity([first, second])
