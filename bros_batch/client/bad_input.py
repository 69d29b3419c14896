"""The error for input that cannot become a job."""

from __future__ import annotations


class BadInput(ValueError):
    """A table, prompt or option cannot be used. The message says what is wrong with it, and in which row."""


class NoPrompt(BadInput):
    """Rows of a table were submitted without a prompt. `example` is a prompt for them."""

    def __init__(self, message: str, example: str) -> None:
        super().__init__(f'{message} For example: "{example}"')
        self.problem = message
        self.example = example


class NoRows(BadInput):
    """A table has no rows."""
