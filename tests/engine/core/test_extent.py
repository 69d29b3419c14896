"""Which slots the tokens of an extent take."""

from engine.core.extent import Extent
from engine.core.terms import Lane, Side


def test_rt_grows_from_the_left_and_be_from_the_right():
    assert list(Extent(7, Side.LEFT, 32, 16, 16).slots(0, 16)) == list(range(112, 128))
    assert list(Extent(7, Side.RIGHT, 32, 16, 16).slots(0, 16)) == list(range(127, 111, -1))
    assert list(Extent(0, Side.RIGHT, 0, 4, 4).slots(2, 4)) == [1, 0]
    assert Side.of(Lane.RT) is Side.LEFT
    assert Side.of(Lane.BE) is Side.RIGHT


def test_an_extent_ends_where_the_next_chunk_begins():
    assert Extent(3, Side.LEFT, 32, 1, 16).limit == 16
    assert Extent(3, Side.RIGHT, 42, 1, 16).limit == 6
