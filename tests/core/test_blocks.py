from engine.core.blocks import Extent, slot_of
from engine.core.types import Lane, Side


def test_rt_grows_from_the_left_and_be_from_the_right():
    assert [slot_of(7, Side.LEFT, i, 16) for i in (0, 1, 15)] == [112, 113, 127]
    assert [slot_of(7, Side.RIGHT, i, 16) for i in (0, 1, 15)] == [127, 126, 112]
    assert Side.of(Lane.RT) is Side.LEFT
    assert Side.of(Lane.BE) is Side.RIGHT


def test_slots_of_a_run_agree_with_the_rule_for_one_token():
    for side in Side:
        extent = Extent(3, side, 32, 16, 16)
        for first in range(16):
            for last in range(first, 17):
                expected = [slot_of(3, side, i, 16) for i in range(first, last)]
                assert list(extent.slots(first, last)) == expected


def test_an_extent_ends_where_the_next_chunk_begins():
    assert Extent(3, Side.LEFT, 32, 1, 16).limit == 16
    assert Extent(3, Side.RIGHT, 42, 1, 16).limit == 6
