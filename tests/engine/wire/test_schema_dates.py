"""Answers hold dates that exist: the grammar accepts those that Python knows and no others."""

from __future__ import annotations

import random
from datetime import date
from itertools import product

import pytest

from tests.schema_matching import accepts_value, matcher_of

YEARS = (0, 1, 4, 100, 400, 1900, 2000, 2023, 2024, 9999)


def exists(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("form", "time"), [("date", ""), ("date-time", "T10:20:30Z")])
def test_dates_exist(form: str, time: str) -> None:
    matcher = matcher_of({"type": "string", "format": form})
    assert matcher is not None
    ends = [f"02-{day:02}" for day in range(31)]
    ends += [f"{month:02}-{day:02}" for month, day in product(range(14), (0, 1, 30, 31, 32))]
    rng = random.Random(0)
    days = [f"{year:04}-{end}" for year in (*YEARS, rng.randrange(10_000)) for end in ends]
    assert {exists(day) for day in days} == {True, False}
    for day in days:
        assert accepts_value(matcher, day + time) == exists(day), day


def test_a_pattern_of_the_schema_is_kept() -> None:
    matcher = matcher_of({"type": ["string", "null"], "format": "date", "pattern": "^20"})
    assert matcher is not None
    assert accepts_value(matcher, "2024-02-29")
    assert not accepts_value(matcher, "1924-02-29")
    assert accepts_value(matcher, None)
