"""What a forecast says besides its time, in words."""

from __future__ import annotations

from bros_batch.forecast_text import effect_on_chats, reused_rows


def test_only_what_is_known_is_said() -> None:
    nothing = {"beside_bulk_s": None, "alone_s": 0.02, "in_time": None}
    assert effect_on_chats(nothing) == ""
    assert effect_on_chats({**nothing, "beside_bulk_s": 0.031}) == (
        "about 31 ms per token meanwhile instead of 20 ms"
    )
    chats = {"beside_bulk_s": 0.031, "alone_s": None, "in_time": 0.98}
    assert effect_on_chats(chats) == (
        "about 31 ms per token meanwhile; 98% of the latest were within their limits"
    )
    assert reused_rows(0) == ""
    assert reused_rows(1200).startswith("about 1,200 rows have the answers of equal ones")
