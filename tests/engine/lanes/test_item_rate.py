"""The running rate of an engine, on a clock that the test moves."""

from __future__ import annotations

import pytest

from engine.lanes.item_rate import ItemRate

TICK_S = 0.25


def run(rate: ItemRate, now_s: float, seconds: float, per_s: float, *, tokens: int = 10) -> float:
    """End `per_s` items per second for some seconds. Returns the time after that."""
    owed = 0.0
    for _ in range(round(seconds / TICK_S)):
        now_s += TICK_S
        owed += per_s * TICK_S
        while owed >= 1:
            rate.count(tokens)
            owed -= 1
        rate.advance(now_s, is_busy=True)
    return now_s


@pytest.mark.parametrize("per_s", [0.5, 20, 3000])
def test_a_steady_rate_is_found(per_s: float) -> None:
    rate = ItemRate(0.0)
    run(rate, 0.0, 30, per_s)
    assert rate.items_per_s == pytest.approx(per_s, rel=0.25)
    assert rate.tokens_per_s == pytest.approx(10 * rate.items_per_s)


def test_the_rate_adapts_within_seconds() -> None:
    rate = ItemRate(0.0)
    now_s = run(rate, 0.0, 60, 1000)
    now_s = run(rate, now_s, 15, 10)
    assert rate.items_per_s < 100
    run(rate, now_s, 15, 1000)
    assert rate.items_per_s > 900


def test_a_fresh_engine_claims_no_rate_and_the_first_ends_do_not_exaggerate_it() -> None:
    rate = ItemRate(0.0)
    assert rate.items_per_s == 0
    run(rate, 0.0, TICK_S, 40)
    assert rate.items_per_s <= 10


def test_time_without_work_changes_nothing() -> None:
    rate = ItemRate(0.0)
    now_s = run(rate, 0.0, 20, 50)
    before = rate.items_per_s
    for _ in range(4000):
        now_s += TICK_S
        rate.advance(now_s, is_busy=False)
    assert rate.items_per_s == before


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_process_that_stood_still_forgets_nothing(jump_s: float) -> None:
    rate = ItemRate(0.0)
    now_s = run(rate, 0.0, 20, 50)
    rate.advance(now_s + jump_s, is_busy=True)
    run(rate, now_s + jump_s, 2, 50)
    assert rate.items_per_s == pytest.approx(50, rel=0.25)


def test_a_rate_that_changed_much_is_news_until_it_is_announced() -> None:
    rate = ItemRate(0.0)
    assert not rate.is_news
    now_s = run(rate, 0.0, 5, 100)
    assert rate.is_news
    assert rate.announce()["items_per_s"] == pytest.approx(100, rel=0.25)
    run(rate, now_s, 5, 100)
    assert not rate.is_news
