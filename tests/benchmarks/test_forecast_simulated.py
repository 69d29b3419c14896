"""How good forecasts are where nothing but them can be wrong: jobs and chats on a virtual clock."""

from __future__ import annotations

from statistics import median

from benchmarks.forecast_simulated import simulate


def test_most_jobs_end_within_their_intervals_and_near_the_median() -> None:
    jobs = simulate(10, "400-600", seed=1)
    assert len(jobs) == 10
    assert all(len(job.ended) == len(job.rows) for job in jobs)
    for share, most in (("0.01", 0.25), ("0.1", 0.2), ("0.5", 0.2)):
        found = [job.seen[share] for job in jobs if share in job.seen]
        assert len(found) >= 8
        assert median(each.error for each in found) <= most
        assert sum(each.is_covered for each in found) >= 0.75 * len(found)
