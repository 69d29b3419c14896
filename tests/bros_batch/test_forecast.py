"""Forecasts: what holds for all of them, and what they are when everything is known."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bros_batch.forecast import Forecast, OtherOwner, Work, forecast

seconds = st.floats(0.0, 1e6)
works = st.builds(Work, seconds, seconds)
owners = st.lists(st.builds(OtherOwner, works, st.floats(0.1, 10.0)), max_size=3)
times = st.floats(0.0, 100.0)


@given(works, st.floats(0.0, 2.0), works, owners, times, times)
def test_the_interval_is_in_order_and_more_work_never_takes_less(
    job, doubt, ahead, others, row_s, overhead_s
):
    found = forecast(job, doubt, ahead=ahead, others=others, row_s=row_s, overhead_s=overhead_s)
    longer = replace(job, seconds=job.seconds + 1)
    later = forecast(longer, doubt, ahead=ahead, others=others, row_s=row_s, overhead_s=overhead_s)
    assert overhead_s <= found.p10 <= found.p50 <= found.p90 < math.inf
    assert found.p50 <= later.p50
    assert found.p50 >= overhead_s + max(ahead.seconds + job.seconds, row_s)


def test_what_is_ahead_is_waited_for_and_other_owners_get_their_share() -> None:
    job = Work(10.0, 0.0)
    assert forecast(job, 0.1, ahead=Work(30.0, 0.0)).p50 == pytest.approx(40.0)
    long, short = Work(1000.0, 0.0), Work(4.0, 0.0)
    assert forecast(job, 0.1, others=[OtherOwner(long, 1.0)]).p50 == pytest.approx(20.0)
    assert forecast(job, 0.1, others=[OtherOwner(long, 3.0)]).p50 == pytest.approx(40.0)
    assert forecast(job, 0.1, others=[OtherOwner(short, 3.0)]).p50 == pytest.approx(14.0)
    both = forecast(job, 0.1, ahead=Work(10.0, 0.0), others=[OtherOwner(long, 0.5), OtherOwner(short, 1.0)])
    assert both.p50 == pytest.approx(34.0)


def test_the_last_rows_end_one_after_the_other() -> None:
    assert forecast(Work(10.0, 0.0), 0.1, row_s=2.0).p50 == pytest.approx(11.0)
    assert forecast(Work(0.1, 0.0), 0.1, row_s=2.0, overhead_s=1.0).p50 == pytest.approx(3.0)


@given(st.floats(0.1, 1e6), st.lists(st.floats(-4.0, 4.0), max_size=40))
def test_a_calibrated_interval_is_in_order(left, errors):
    found = forecast(Work(left, 0.0), 0.2).calibrated(errors)
    assert 0 <= found.p10 <= found.p50 <= found.p90


def test_a_calibrated_interval_covers_what_earlier_ones_missed():
    drawn = random.Random(1)
    made = Forecast(80.0, 100.0, 125.0)
    # The jobs take longer than the median, and vary more than the interval says.
    took = [100 * math.exp(drawn.gauss(0.5, 0.3)) for _ in range(240)]
    covered = 0
    for number in range(40, 240):
        found = made.calibrated([made.error(each) for each in took[number - 40 : number]])
        covered += found.p10 <= took[number] <= found.p90
    assert covered >= 150
    wide = made.calibrated([])
    assert wide.p50 == pytest.approx(made.p50)
