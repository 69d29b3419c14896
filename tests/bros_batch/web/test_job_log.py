"""What the log of a job says of how many rows have ended."""

from __future__ import annotations

import pytest

from bros_batch.db.table_rows import JobEvent
from bros_batch.web.job_log import log_sentence


@pytest.mark.parametrize(
    ("kind", "counts", "sentence"),
    [
        ("completed", (1, 1, 0), "Finished: its row is done"),
        ("completed", (1, 0, 1), "Finished: its row has no result"),
        ("paused", (1, 0, 0), "Paused: its row is not done"),
        ("completed", (1200, 1198, 2), "Finished: 1\u202f198 of 1\u202f200 rows done, 2 without a result"),
        ("rerun", (3, 2, 0), "Run again: 1 row"),
    ],
)
def test_rows_are_counted_in_plain_words(kind: str, counts: tuple[int, int, int], sentence: str) -> None:
    detail = dict(zip(("total", "succeeded", "without_result"), counts, strict=True))
    assert log_sentence(JobEvent(1, "batch_1", 0.0, kind, detail)) == sentence
