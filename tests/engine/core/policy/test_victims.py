"""Which request each victim order chooses when memory is full, and how much that request gives up."""

import pytest

from engine.core.backlog import Backlog
from engine.core.batch import Batch
from engine.core.kv.cache import KVCacheManager, KVOptions
from engine.core.policy.victims import BrosVictims, OldestFirst, RtFirst
from engine.core.request import Request
from engine.core.terms import Lane, Preemption
from tests.factories import request

RT, BE = Lane.RT, Lane.BE


class FullMemory:
    """Requests of these lanes, in order of arrival, hold all blocks of 4 slots: two full ones and a half each."""

    def __init__(self, *lanes: Lane, preemption: Preemption = Preemption.TRUNCATE) -> None:
        self.kv = KVCacheManager(3 * len(lanes), 4, KVOptions(preemption=preemption, prefix_cache=False))
        self.backlog = Backlog(len(lanes), reserved_rt_rows=0, min_be_rows=0)
        self.batch = Batch(7, 0.0, 0.0, 64)
        self.requests = [request(range(11), lane=lane) for lane in lanes]
        for i, one in enumerate(self.requests):
            one.sort_key = (0.0, 0.0, i)
            self.backlog.add(one)
            assert self.backlog.give_row(one, 1)
            assert self.kv.extend(one, 10)
            one.num_computed_tokens = 10
            self.backlog.catch_up(one)

    def chosen(self, order: OldestFirst | RtFirst, for_request: int, *, force: bool = False):
        """(index of the victim, tokens it gives up) for one more token of this request."""
        wanting: Request = self.requests[for_request]
        chosen = order.choose(wanting, 1, self.batch, has_room=False, force=force)
        return None if chosen is None else (self.requests.index(chosen[0]), chosen[1])


@pytest.mark.parametrize("make", [RtFirst, BrosVictims])
def test_rt_takes_what_it_needs_from_the_youngest_be_and_then_from_younger_rt(make):
    memory = FullMemory(BE, RT, BE, RT)
    order = make(memory.kv, memory.backlog, max_preemptions=8)
    assert memory.chosen(order, 1) == (2, 1)
    memory.requests[2].last_step = memory.batch.number  # it is in the plan
    assert memory.chosen(order, 1) == (0, 1)
    memory.requests[0].last_step = memory.batch.number
    assert memory.chosen(order, 1) == (3, 1)
    assert memory.chosen(order, 3) is None, "the other chat is older"


@pytest.mark.parametrize("make", [RtFirst, BrosVictims])
def test_be_takes_a_block_from_younger_be_only(make):
    memory = FullMemory(BE, RT, BE, RT)
    order = make(memory.kv, memory.backlog, max_preemptions=8)
    assert memory.chosen(order, 0) == (2, 2), "its last block, which holds 2 tokens"
    assert memory.chosen(order, 2) is None


def test_oldest_first_takes_a_block_from_the_youngest_be_and_then_from_younger_rt():
    memory = FullMemory(RT, BE, RT)
    order = OldestFirst(memory.kv, memory.backlog)
    assert memory.chosen(order, 0) == (1, 2)
    assert memory.chosen(order, 1) == (2, 2)
    assert memory.chosen(order, 2) is None


def test_be_preempted_often_is_spared_while_there_are_others_and_the_most_urgent_always():
    memory = FullMemory(BE, BE, RT)
    order = RtFirst(memory.kv, memory.backlog, max_preemptions=2)
    memory.requests[1].num_preemptions = 2
    assert memory.chosen(order, 2) == (0, 1)
    memory.requests[0].num_preemptions = 2
    assert memory.chosen(order, 2) == (1, 1)
    memory.requests[1].last_step = memory.batch.number
    assert memory.chosen(order, 2) is None


def test_without_preemption_rt_takes_nothing_from_be():
    memory = FullMemory(BE, RT, RT, preemption=Preemption.NONE)
    order = RtFirst(memory.kv, memory.backlog, max_preemptions=8)
    assert memory.chosen(order, 1) == (2, 1)
    assert memory.chosen(order, 2) is None


def test_bros_takes_nothing_for_a_prompt_of_be_unless_it_is_forced_and_then_shelters_it():
    memory = FullMemory(BE, RT, BE)
    order = BrosVictims(memory.kv, memory.backlog, max_preemptions=8)
    youngest = memory.requests[2]
    memory.backlog.fall_behind(youngest)
    assert memory.chosen(order, 2) is None
    assert order.sheltered is None
    assert memory.chosen(order, 2, force=True) == (0, 2), "BE gives way before RT"
    assert order.sheltered is youngest
    assert memory.chosen(order, 1, force=True) == (0, 1), "the sheltered request loses nothing"
    assert memory.chosen(order, 0, force=True) is None, "one request is forced at a time"
