"""Lengths of outputs that are estimated while most rows are still in flight."""

from __future__ import annotations

import random
from statistics import fmean, median

import pytest

from bros_batch.output_lengths import Lengths, OutputLengths


def test_rows_that_ended_first_are_not_taken_for_all() -> None:
    """64 rows run at a time, their outputs are uniform, and the first ones have ended: those are short."""
    drawn = random.Random(1)
    naive, found = [], []
    for _ in range(40):
        outputs = [drawn.randint(1, 100) for _ in range(64)]
        ended = [each for each in outputs if each <= 30]
        naive.append(fmean(ended))
        found.append(
            OutputLengths(50.0, 100.0, ended=Lengths(ended), in_flight=64 - len(ended), so_far=30.0).mean
        )
    assert median(naive) < 20
    assert 40 < median(found) < 62


def test_outputs_of_one_length_are_known_before_and_while_they_run() -> None:
    earlier = Lengths([40] * 200, 0.1)
    lengths = OutputLengths(12.0, 100.0, expected=earlier)
    assert lengths.mean == pytest.approx(40, rel=0.02)
    begun = OutputLengths(12.0, 100.0, expected=earlier, in_flight=64, so_far=30.0)
    assert begun.left(30.0) == pytest.approx(10, rel=0.1)
    assert begun.mean == pytest.approx(40, rel=0.02)


def test_the_guess_holds_until_something_is_known_and_not_beyond_the_limit() -> None:
    assert OutputLengths(25.0, 50.0).mean == 25
    assert OutputLengths(200.0, 50.0).mean == 50
    assert OutputLengths(0.0, 0.0).mean == OutputLengths(0.0, 0.0).left(0.0) == 0
    many = OutputLengths(200.0, ended=Lengths([7, 9] * 500))
    assert many.mean == pytest.approx(8, rel=0.01)
    assert many.evidence == 1000
    started = OutputLengths(20.0, 64.0, in_flight=10, so_far=63.0)
    assert started.left(63.0) == pytest.approx(1.0)


def test_long_outputs_cost_no_more_memory_and_keep_their_mean() -> None:
    drawn = random.Random(2)
    seen = [drawn.randint(1000, 9000) for _ in range(256)]
    lengths = OutputLengths(128.0, 1_000_000.0, ended=Lengths(seen))
    assert lengths.mean == pytest.approx(fmean(seen), rel=0.02)
