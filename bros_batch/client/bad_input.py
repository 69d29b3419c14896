"""The error for input that cannot become a job."""

from __future__ import annotations


class BadInput(ValueError):
    """A table, prompt or option cannot be used. The message says what is wrong with it, and in which row."""


class NoRows(BadInput):
    """A table has no rows."""
