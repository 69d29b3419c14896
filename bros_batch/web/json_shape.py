"""Bounds the number of values in a JSON text before it is parsed.

A parser may need a hundred times the memory of a text like `[[],[],[], ...]`, and a validator describes each wrong
value. Both are proportional to the number of values, which can be counted without parsing.
"""

from __future__ import annotations

import re

# The token ids of a prompt are the longest list that is useful.
MAX_VALUES = 500_000
# Objects, lists and keys take far more memory than numbers. A chat needs about three per message.
MAX_NODES = 20_000

STRING = re.compile(rb'"[^"]*"')
# What is left of a text without its characters that mean nothing outside strings.
MEANINGLESS = bytes(set(range(256)) - set(b'",:[{'))


class TooManyValues(ValueError):
    """A JSON text with more values than a request may have."""


class JsonShape:
    """Counts the values of a JSON text that arrives in pieces. `num_nodes` counts its objects, lists and keys."""

    def __init__(self) -> None:
        self._num_values = 0
        self.num_nodes = 0
        self._unfinished = b""  # a backslash whose second character is in the next piece
        self._in_string = False

    def feed(self, piece: bytes) -> None:
        """Count the values that begin in `piece`. Raises TooManyValues as soon as there are too many."""
        piece = self._unfinished + piece
        # Backslashes go in pairs with the character after them, so an odd number of them at the end is unfinished.
        num_backslashes = len(piece) - len(piece.rstrip(b"\\"))
        self._unfinished = b"\\" * (num_backslashes % 2)
        piece = piece[: len(piece) - num_backslashes]
        marks = piece.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, MEANINGLESS)
        if self._in_string:
            _, quote, marks = marks.partition(b'"')
            if not quote:
                return
        marks = STRING.sub(b"", marks)
        marks, quote, _ = marks.partition(b'"')
        self._in_string = bool(quote)
        self.num_nodes += len(marks) - marks.count(b",")
        self._num_values += len(marks) - marks.count(b":")
        if self._num_values > MAX_VALUES:
            raise TooManyValues(f"more than {MAX_VALUES:,} values")
        if self.num_nodes > MAX_NODES:
            raise TooManyValues(f"more than {MAX_NODES:,} objects, lists and keys")
