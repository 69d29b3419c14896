"""The KV cache manager under random use: every invariant holds after every operation, no slot is overwritten while a
request needs it, and lost tokens are restored as they were."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.kv.cache import KVCacheManager, KVOptions
from engine.core.kv.check import check_kv
from engine.core.request import Request
from engine.core.terms import Checkpoint, Lane, Preemption, Side
from tests.factories import request

OPTIONS = [
    KVOptions(sharing, preemption, checkpoint, prefix_cache, num_host_slots=20)
    for sharing in (True, False)
    for preemption in (Preemption.TRUNCATE, Preemption.WHOLE)
    for checkpoint in Checkpoint
    for prefix_cache in (True, False)
]


class KVCacheMachine(RuleBasedStateMachine):
    """`content` is the memory of the device and `host` that of the host. A slot holds all tokens of a prefix."""

    @initialize(options=st.sampled_from(OPTIONS), block_size=st.sampled_from([1, 4, 16]))
    def start(self, options, block_size):
        self.kv = KVCacheManager(48 // block_size, block_size, options)
        self.requests: list[Request] = []
        self.content: dict[int, tuple[int, ...]] = {}
        self.host: dict[int, tuple[int, ...]] = {}
        self.step = 0

    def pick(self, number: int) -> Request:
        return self.requests[number % len(self.requests)]

    def copy_out(self):
        for copy in self.kv.copies_out:
            for slot, host_slot in zip(copy.device_slots, copy.host_slots, strict=True):
                self.host[host_slot] = self.content[slot]
        self.kv.copies_out.clear()

    def compute(self, chosen: Request, slots: list[int]):
        for slot in slots:
            chosen.num_computed_tokens += 1
            self.content[slot] = tuple(chosen.token_ids[: chosen.num_computed_tokens])
        self.step += 1

    @rule(lane=st.sampled_from(Lane), family=st.integers(0, 2), length=st.integers(1, 30))
    def new_request(self, lane, family, length):
        """Prompts of a family share their beginning."""
        prompt = [family, *range(100, 100 + min(length, 20)), *range(len(self.requests), length)]
        new = request(prompt, lane=lane)
        self.kv.reuse.match(new)
        self.requests.append(new)

    @precondition(lambda self: self.requests)
    @rule(number=st.integers(0))
    def copy_beginning(self, number):
        chosen = self.pick(number)
        start = chosen.num_computed_tokens
        copied = self.kv.copy_beginning(chosen)
        assert chosen.num_computed_tokens < chosen.num_tokens or copied is None
        if copied is not None:
            slots, known = copied
            assert 0 < len(slots) == len(known) == chosen.num_computed_tokens - start
            found = [self.content[slot] for slot in known]
            self.content.update(zip(slots, found, strict=True))
            self.step += 1

    @precondition(lambda self: self.requests)
    @rule(number=st.integers(0), wanted=st.integers(1, 17))
    def extend(self, number, wanted):
        chosen = self.pick(number)
        if chosen.num_uncomputed_tokens < wanted:
            chosen.token_ids += [7] * (wanted - chosen.num_uncomputed_tokens)
        before, room = self.kv.slots(chosen), self.kv.room_tokens(chosen, wanted)
        slots = self.kv.extend(chosen, wanted)
        assert (slots is None) == (room < wanted)
        assert self.kv.slots(chosen) == before + (slots or [])
        self.compute(chosen, slots or [])
        self.kv.reuse.commit(chosen)

    @precondition(lambda self: self.requests)
    @rule()
    def decode(self):
        """Extend all requests at once, as a step of single-token rows does."""
        for r in self.requests:
            r.token_ids += [9] * (1 - min(1, r.num_uncomputed_tokens))
        slots = self.kv.extend_each(self.requests)
        if len(slots) < len(self.requests):
            assert self.kv.extend(self.requests[len(slots)], 1) is None
        for r, slot in zip(self.requests, slots, strict=False):
            self.compute(r, [slot])

    @precondition(lambda self: self.requests)
    @rule(number=st.integers(0), num_tokens=st.integers(1, 20))
    def reclaim(self, number, num_tokens):
        victim = self.pick(number)
        before, computed = self.kv.slots(victim), victim.num_computed_tokens
        lost = self.kv.reclaim(victim, num_tokens, self.step)
        self.copy_out()
        self.step += 1
        assert victim.num_computed_tokens == computed - lost
        assert lost >= min(num_tokens, computed)
        assert self.kv.slots(victim) == before[: computed - lost], "only a suffix is lost"
        if self.kv.options.preemption is Preemption.WHOLE:
            assert lost == computed

    @precondition(lambda self: self.requests)
    @rule(number=st.integers(0))
    def restore(self, number):
        chosen = self.pick(number)
        self.kv.reuse.match(chosen)
        saved = self.kv.host.restorable(chosen)
        slots = self.kv.extend(chosen, self.kv.room_tokens(chosen, saved)) if saved else None
        host_slots = self.kv.host.read(chosen, len(slots or []), self.step) if saved else []
        for slot, host_slot in zip(slots or [], host_slots, strict=True):
            self.content[slot] = self.host[host_slot]
        chosen.num_computed_tokens += len(host_slots)
        self.step += 1

    @precondition(lambda self: self.requests)
    @rule(number=st.integers(0))
    def free(self, number):
        self.kv.free(self.requests.pop(number % len(self.requests)))

    @invariant()
    def sound(self):
        if not hasattr(self, "kv"):
            return
        check_kv(self.kv, self.requests)
        for r in self.requests:
            for position, slot in enumerate(self.kv.slots(r)[: r.num_computed_tokens]):
                assert self.content[slot] == tuple(r.token_ids[: position + 1])

    def teardown(self):
        if not hasattr(self, "kv"):
            return
        for r in self.requests:
            self.kv.free(r)
        assert self.kv.num_free_blocks == self.kv.num_blocks
        assert self.kv.host.num_used_slots == 0
        assert self.kv.usage() == {Lane.RT: 0, Lane.BE: 0}


KVCacheMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestKVCache = KVCacheMachine.TestCase


def computed(kv: KVCacheManager, lane: Lane, num_tokens: int, first_token: int = 0) -> Request:
    r = request(range(first_token, first_token + num_tokens), lane=lane)
    assert kv.extend(r, num_tokens)
    r.num_computed_tokens = num_tokens
    return r


def test_rt_takes_the_free_middle_of_a_bulk_block_and_bulk_loses_nothing():
    kv = KVCacheManager(num_blocks=2, block_size=16)
    bulk = computed(kv, Lane.BE, 26)
    chat = request(range(6), lane=Lane.RT)
    slots = kv.extend(chat, 6)
    block = bulk.extents[1].block
    assert slots == [block * 16 + i for i in range(6)], "from the left"
    assert bulk.num_computed_tokens == 26
    assert kv.extend(bulk, 1) is None, "both sides have met"
    assert kv.pool.sharing.neighbor(chat) is bulk
    kv.free(chat)
    assert kv.extend(bulk, 6) is not None


def test_without_sharing_rt_finds_no_room_in_bulk_blocks():
    kv = KVCacheManager(num_blocks=2, block_size=16, options=KVOptions(sharing=False))
    computed(kv, Lane.BE, 26)
    assert kv.extend(request(lane=Lane.RT), 1) is None


def test_preemption_takes_only_the_newest_tokens_that_are_needed():
    kv = KVCacheManager(num_blocks=2, block_size=16, options=KVOptions(num_host_slots=64))
    bulk = computed(kv, Lane.BE, 32)
    chat = request(range(7), lane=Lane.RT)
    assert kv.extend(chat, 7) is None
    assert kv.reclaim(bulk, 7, step=1) == 8, "7 in quanta of 4"
    (copy,) = kv.copies_out
    assert copy.device_slots == [bulk.extents[1].block * 16 + i for i in range(7, -1, -1)], (
        "positions 24 to 31"
    )
    assert kv.extend(chat, 7) == [bulk.extents[1].block * 16 + i for i in range(7)]
    assert bulk.num_computed_tokens == 24
    assert kv.host.restorable(bulk) == 7, "all but the last token, which is computed for its logits"


def test_tokens_lost_again_after_a_restore_are_not_copied_again():
    kv = KVCacheManager(num_blocks=2, block_size=16, options=KVOptions(num_host_slots=64))
    bulk = computed(kv, Lane.BE, 20)
    kv.reclaim(bulk, 8, step=1)
    kv.copies_out.clear()
    assert kv.extend(bulk, 7)
    assert len(kv.host.read(bulk, 7, step=2)) == 7
    bulk.num_computed_tokens += 7
    kv.reclaim(bulk, 4, step=3)
    assert not kv.copies_out


def test_the_oldest_copies_make_way_for_new_ones():
    kv = KVCacheManager(num_blocks=4, block_size=8, options=KVOptions(num_host_slots=8))
    first, second = computed(kv, Lane.BE, 8), computed(kv, Lane.BE, 8, 50)
    kv.reclaim(first, 8, step=1)
    assert kv.host.restorable(first) == 7
    kv.reclaim(second, 4, step=2)
    assert (kv.host.restorable(first), kv.host.restorable(second)) == (0, 3)


def test_a_prefix_is_found_across_lanes_after_its_writer_has_ended():
    kv = KVCacheManager(num_blocks=8, block_size=4)
    writer = computed(kv, Lane.BE, 10)
    kv.free(writer)
    assert kv.num_free_blocks == 8
    reader = request(range(10), lane=Lane.RT)
    assert kv.reuse.match(reader) == 8
    assert kv.slots(reader) == [b * 4 + i for b in (e.block for e in reader.extents) for i in (3, 2, 1, 0)]
    other = request([0, 1, 2, 3, 99, 5, 6, 7, 8], lane=Lane.BE)
    assert kv.reuse.match(other) == 4, "both hold the first block"
    whole = request(range(8), lane=Lane.BE)
    assert kv.reuse.match(whole) == 4, "the last token must be computed for its logits"


@pytest.mark.parametrize(("lane", "num_copied"), [(Lane.RT, 2), (Lane.BE, 0)])
def test_the_end_of_an_answer_is_kept_for_the_next_message_of_a_chat(lane: Lane, num_copied: int):
    """Nobody continues an answer of bulk, which would take a block from those that others may find."""
    kv = KVCacheManager(num_blocks=8, block_size=4)
    first = request(range(4), lane=lane)
    first.token_ids += [8, 9]
    assert kv.extend(first, 6)
    first.num_computed_tokens = 6
    kv.free(first)
    second = request([*range(4), 8, 9, 10], lane=lane)
    assert kv.reuse.match(second) == 4
    copied = kv.copy_beginning(second)
    assert (len(copied[0]) if copied else 0) == num_copied
    assert second.num_computed_tokens == 4 + num_copied


@pytest.mark.parametrize(("num_alike", "num_copied"), [(3, 0), (4, 4), (7, 7)])
def test_a_beginning_is_copied_into_one_block_if_it_is_long_enough(num_alike: int, num_copied: int):
    kv = KVCacheManager(num_blocks=3, block_size=16)
    kv.free(computed(kv, Lane.BE, 10))
    other = request([*range(num_alike), *range(50, 70)])
    copied = kv.copy_beginning(other)
    assert (len(copied[0]) if copied else 0) == num_copied == other.num_computed_tokens
    rest = other.num_uncomputed_tokens
    assert len(kv.extend(other, rest) or []) == rest
    other.num_computed_tokens += rest
    assert [extent.length for extent in other.extents] == [16, num_alike + 4]
    check_kv(kv, [other])


def test_a_sweep_of_documents_does_not_flush_the_chats_prefixes():
    kv = KVCacheManager(num_blocks=8, block_size=4)
    kv.free(computed(kv, Lane.RT, 8))
    for i in range(1, 10):
        kv.free(computed(kv, Lane.BE, 16, 100 * i))
    assert kv.reuse.match(request(range(9), lane=Lane.RT)) == 8


def test_the_check_finds_a_block_with_two_holders():
    kv = KVCacheManager(num_blocks=4, block_size=4)
    first, second = request(), request()
    assert kv.extend(first, 3) and kv.extend(second, 3)
    second.extents[0].block = first.extents[0].block
    with pytest.raises(AssertionError):
        check_kv(kv, [first, second])


def test_sides_are_by_lane():
    assert (Side.of(Lane.RT), Side.of(Lane.BE)) == (Side.LEFT, Side.RIGHT)
