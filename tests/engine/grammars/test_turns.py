"""Askers take turns, those of chats before those of bulk, whatever waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.grammars.contract import Asker
from engine.grammars.turns import FairQueue

ASKERS = [Asker(owner, is_bulk) for owner in "abc" for is_bulk in (False, True)]


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(ASKERS)), max_size=60))
def test_every_value_leaves_once_and_no_asker_waits_for_two_of_another(
    added: list[tuple[int, Asker]],
) -> None:
    queue: FairQueue[int] = FairQueue()
    for value, asker in added:
        queue.add(value, asker)
    waiting = {asker: {value for value, own in added if own == asker} for asker in ASKERS}
    served: list[Asker] = []  # of each value, the asker that has waited longest of those who waited for it
    while queue:
        before = {asker: own for asker, own in waiting.items() if own}
        value = queue.pop()
        askers = [asker for asker, own in before.items() if value in own]
        assert askers
        if any(not asker.is_bulk for asker in before):
            assert any(not asker.is_bulk for asker in askers)
        for asker in before:
            waiting[asker].discard(value)
            assert queue.num_of(asker) == len(waiting[asker])
        served.append(askers[0])
    assert len(served) == len({value for value, _ in added})
    assert not any(waiting.values())


def test_askers_alternate() -> None:
    queue: FairQueue[str] = FairQueue()
    for i in range(1_000):
        queue.add(f"a{i}", Asker("a"))
    for i in range(3):
        queue.add(f"b{i}", Asker("b"))
        queue.add(f"bulk{i}", Asker("b", is_bulk=True))
    queue.add("c0", Asker("c"))
    assert [queue.pop() for _ in range(9)] == ["a0", "b0", "c0", "a1", "b1", "a2", "b2", "a3", "a4"]
