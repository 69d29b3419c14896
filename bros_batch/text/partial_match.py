"""Marks in a growing text: the end of the text that may be the beginning of one."""

from __future__ import annotations


def num_begun_chars(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that begins `mark` without completing it."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
