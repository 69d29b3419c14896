from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.wire.stream_entries import MAX_EPOCH, MAX_ITEM_ID, describe, identity, read_number

NOT_NUMBERS = [b"", b"-", b"1_0", b" 1", b"1\n", b"1.5", b"0x10", b"\xff\xfe", "١".encode(), None, 7, "7"]


@given(st.binary(max_size=40) | st.from_regex(rb"-?[0-9]{1,30}", fullmatch=True))
def test_a_number_is_in_range_or_is_none(value: bytes) -> None:
    number = read_number(value, -5, MAX_ITEM_ID)
    assert number is None or (-5 <= number <= MAX_ITEM_ID and int(value) == number)


@given(st.integers(-(2**70), 2**70))
def test_every_number_in_range_is_read(number: int) -> None:
    expected = number if 0 <= number <= MAX_EPOCH else None
    assert read_number(str(number).encode(), 0, MAX_EPOCH) == expected


@pytest.mark.parametrize("value", [*NOT_NUMBERS, b"1" + b"0" * 30, b"9" * 5000, str(2**63).encode()])
def test_what_is_no_number_or_does_not_fit_is_none(value: object) -> None:
    assert read_number(value, 0, MAX_ITEM_ID) is None


def test_an_entry_is_identified_by_both_numbers() -> None:
    assert identity({b"i": b"5", b"e": b"1"}) == (5, 1)
    for fields in ({}, {b"i": b"5"}, {b"e": b"1"}, {b"i": b"5", b"e": str(2**31).encode()}):
        assert identity(fields) is None


def test_a_description_of_any_entry_is_short() -> None:
    text = describe({b"\xff" * 1000: b"x" * 10**6, **{b"%d" % i: b"" for i in range(1000)}})
    assert "1000000 bytes" in text and len(text) < 1000
