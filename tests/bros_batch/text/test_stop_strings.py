"""Stop strings: text is cut at the first one, however it arrives."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bros_batch.text.stop_strings import StopCutter


@given(
    content=st.text("abc", max_size=40),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 5), min_size=60, max_size=60),
)
@settings(max_examples=300, deadline=None)
def test_cuts_at_the_first_stop_string(content: str, stops: list[str], sizes: list[int]) -> None:
    cutter, shown, start = StopCutter(stops), "", 0
    for size in sizes:
        shown += cutter.push(content[start : start + size])
        start += size
        # What was shown can still be followed by the rest: no beginning of a stop string was shown too early.
        assert content.startswith(shown)
    shown += cutter.finish()
    # A stop string counts as soon as its end arrives; of those that end in one piece, the one that begins first.
    first_end = min((content.find(stop) + len(stop) for stop in stops if stop in content), default=None)
    assert cutter.stopped == (first_end is not None)
    if first_end is None:
        assert shown == content
    else:
        assert len(shown) < first_end
        assert any(content[len(shown) :].startswith(stop) for stop in stops)


def test_a_stop_string_counts_only_while_armed() -> None:
    cutter = StopCutter(["END"])
    assert cutter.push("xEND", armed=False) == "xEND"
    assert cutter.push("yE", armed=False) == "y"
    assert cutter.push("ND!", armed=True) == ""
    assert cutter.stopped
