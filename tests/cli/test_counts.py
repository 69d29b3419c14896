"""One definition of done, failed and not run, and how long a job has been as it is."""

from __future__ import annotations

import time

import pytest

from bros_batch.client.progress import Meter
from bros_batch.item_counts import ItemCounts
from cli.jobs.list_jobs import _row
from cli.jobs.status import summary


def batch(status: str, **fields: object) -> dict:
    """A job of an hour ago: 100 items, of which 5 succeeded, 2 failed, 60 were cancelled and 3 expired."""
    now_s = int(time.time())
    return {
        "id": "batch_1",
        "name": "docs",
        "status": status,
        "created_at": now_s - 3600,
        "request_counts": {"total": 100, "completed": 5, "failed": 2},
        "item_counts": {"succeeded": 5, "failed": 2, "cancelled": 60, "expired": 3},
        **fields,
    }


def test_every_view_counts_alike() -> None:
    job = batch("cancelling")
    counts = ItemCounts.of_batch(job)
    assert (counts.ended, counts.without_result) == (70, 65)
    words = "5 of 100 done, 2 failed, 60 cancelled, 3 expired"
    assert f"items:   {words}" in summary(job)
    assert Meter().read(job, 0.0).line() == f"cancelling, {words}"
    assert _row(job)[2:6] == ("cancelling", "5/100", "2", "63")


def test_a_job_whose_file_is_being_read_has_no_total() -> None:
    job = batch("validating", request_counts={}, item_counts=None)
    assert Meter().read(job, 0.0).line() == "reading the file, 0 of ? done"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": "paused", "paused_at": -480}, "paused for 8 min"),
        ({"status": "in_progress", "in_progress_at": -60}, "in_progress for 1 min"),
        ({"status": "finalizing", "finalizing_at": -310}, "finalizing for 5 min"),
        ({"status": "validating"}, "validating for 1 h"),
        ({"status": "completed", "completed_at": -1800}, "completed after 30 min"),
        ({"status": "in_progress", "in_progress_at": None}, "in_progress"),
    ],
)
def test_a_status_says_since_when_it_is(fields: dict, words: str) -> None:
    now_s = time.time()
    stamps = {name: now_s + value if isinstance(value, int) else value for name, value in fields.items()}
    assert f"status:  {words}" in summary(batch(**stamps))
