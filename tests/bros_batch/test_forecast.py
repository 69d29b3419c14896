"""Forecasts: what holds for all of them, and what they are when everything is known."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bros_batch.forecast import Estimate, Forecast, Workload, combined, forecast, recent_pace

estimates = st.builds(Estimate, st.floats(1e-3, 1e6), st.floats(0.0, 2.0))
rows = st.integers(0, 10_000_000)
workloads = st.builds(Workload, rows, estimates)
times = st.floats(0.0, 100.0)


@given(workloads, estimates, st.none() | estimates, st.lists(workloads, max_size=3), times, times, rows)
def test_more_rows_never_take_less_time_and_the_interval_is_in_order(
    job, pace, rows_per_s, ahead, row_s, overhead_s, more
):
    found = forecast(job, pace, rows_per_s, ahead, row_s, overhead_s)
    longer = forecast(Workload(job.rows_left + more, job.work), pace, rows_per_s, ahead, row_s, overhead_s)
    behind = forecast(job, pace, rows_per_s, [*ahead, Workload(more, job.work)], row_s, overhead_s)
    assert overhead_s <= found.p10 <= found.p50 <= found.p90 < math.inf
    for other in (longer, behind):
        assert (found.p10, found.p50, found.p90) <= (other.p10, other.p50, other.p90)
        assert found.p10 <= other.p10
        assert found.p90 <= other.p90


@given(workloads, estimates, st.floats(1.1, 10.0))
def test_a_faster_engine_takes_less_time(job, pace, factor):
    assume(job.rows_left > 0)
    slow = forecast(job, pace)
    fast = forecast(job, Estimate(pace.median * factor, pace.doubt))
    assert fast.p50 == pytest.approx(slow.p50 / factor)


def test_a_forecast_shrinks_as_rows_finish_at_a_steady_pace():
    seen, last = [(0.0, 0.0)], None
    for second in range(1, 60):
        seen.append((float(second), 10.0 * second))
        pace = recent_pace(seen, float(second))
        found = forecast(Workload(600 - 10 * second, Estimate(1.0, 0.1)), None, pace)
        assert found.p50 == pytest.approx(60 - second)
        assert last is None or (found.p10 < last.p90 and found.p90 < last.p90)
        last = found


def test_without_any_pace_there_is_no_forecast():
    assert forecast(Workload(10, Estimate(1.0, 0.1)), None) is None
    assert recent_pace([(0.0, 0.0)], 1.0) is None
    assert recent_pace([(0.0, 5.0), (10.0, 5.0)], 10.0) is None


def test_the_surer_estimate_counts_more_and_a_contradiction_adds_doubt():
    sure, vague = Estimate(100.0, 0.1), Estimate(200.0, 0.5)
    both = combined([sure, None, vague])
    assert 100 < both.median < 110
    assert combined([sure, Estimate(400.0, 0.1)]).doubt > combined([sure, sure]).doubt
    assert combined([None]) is None


def test_an_uneven_pace_is_less_certain():
    even = recent_pace([(float(s), 10.0 * s) for s in range(61)], 60.0)
    bursts = recent_pace([(float(s), 200.0 * (s // 20)) for s in range(61)], 60.0)
    assert even.median == bursts.median == 10.0
    assert bursts.doubt > 2 * even.doubt


@given(estimates, workloads, st.lists(st.floats(-4.0, 4.0), max_size=40))
def test_a_calibrated_interval_is_in_order(pace, job, errors):
    found = forecast(job, pace).calibrated(errors)
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
