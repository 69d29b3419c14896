"""The first line of an error's message."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from bros_batch.first_line import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(), "OSError"),
        (TimeoutError(""), "TimeoutError"),
        (ValueError("  \n "), "ValueError"),
        (ValueError("\nfirst\nsecond"), "first"),
        (OperationalError("SELECT 1", {}, OSError("gone\naway")), "gone"),
        (OperationalError("SELECT 1", {}, OSError()), "OSError"),
    ],
)
def test_the_first_line_that_says_anything(error: Exception, line: str) -> None:
    assert first_line(error) == line
