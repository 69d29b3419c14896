"""JSON: the objects of an array, or one after another, each of them a row. Only one is in memory at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from bros_batch.documents.readers.decoded_text import DecodedText
from bros_batch.documents.readers.table import BadRow, Row, Table, UnreadableTable

MAX_VALUE_CHARS = 64 * 1024**2
_SPACE = re.compile(r"[ \t\r\n]*")
# NaN, which Python writes and JSON lacks, is no value.
_decode = json.JSONDecoder(parse_constant=lambda name: None).raw_decode


def json_table(name: str, stream: BinaryIO, encoding: str) -> Table:
    """Open a file of JSON, which begins after its byte order mark."""
    return Table(name, "json", None, _rows(JsonValues(name, DecodedText(stream, encoding))))


def _rows(values: JsonValues) -> Iterator[Row | BadRow]:
    for number, value in enumerate(values.read(), start=1):
        if not isinstance(value, dict):
            yield BadRow(number, f'Row {number} is JSON, but not an object like {{"text": "..."}}.')
        elif values.has_surrogates and not _is_text(value):
            yield BadRow(number, f"Row {number} has bytes that are not text, or half of a surrogate pair.")
        else:
            yield Row(number, value)


class JsonValues:
    """Reads values from a text, of which it keeps what the next value needs."""

    def __init__(self, name: str, text: DecodedText) -> None:
        self._name = name
        self._text = text
        self._pieces = text.pieces()
        self._buffer = ""
        self._at = 0
        self._line = 1
        self._ended = False
        self._escaped = False

    @property
    def has_surrogates(self) -> bool:
        """Whether a value may contain surrogates, which no text has."""
        return self._text.has_surrogates or self._escaped

    def read(self) -> Iterator[Any]:
        """Yield the elements of the array, or else all values. Raises UnreadableTable where the text is not JSON."""
        in_array = self._next_char() == "["
        if in_array:
            self._at += 1
        is_first = True
        while char := self._next_char():
            if in_array:
                if char == "]":
                    self._at += 1
                    if self._next_char():
                        raise self._error("text follows the end of the array")
                    return
                if not is_first:
                    if char != ",":
                        raise self._error("a comma or ] is missing")
                    self._at += 1
                    if not self._next_char():
                        break
            yield self._value()
            is_first = False
        if in_array:
            raise self._error("the array does not end")

    def _value(self) -> Any:
        while True:
            try:
                value, end = _decode(self._buffer, self._at)
            except RecursionError:
                raise self._error("a value is nested too deeply") from None
            except ValueError as error:
                if self._ended or len(self._buffer) - self._at > MAX_VALUE_CHARS:
                    raise self._failed(error) from None
            else:
                if end < len(self._buffer) or self._ended:  # a number could go on
                    self._escaped = self._escaped or "\\u" in self._buffer[self._at : end]
                    self._at = end
                    return value
            self._grow()

    def _next_char(self) -> str:
        """Skip spaces, and return the character after them; nothing at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._grow()

    def _grow(self) -> None:
        """Read at least as much as there is, so that a long value is not parsed too often."""
        self._line += self._buffer.count("\n", 0, self._at)
        pieces = [self._buffer[self._at :]]
        self._at = 0
        size = 0
        while size <= len(pieces[0]):
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                break
            pieces.append(piece)
            size += len(piece)
        self._buffer = "".join(pieces)

    def _failed(self, error: ValueError) -> UnreadableTable:
        if not self._ended:
            return self._error(
                f"a value has more than {MAX_VALUE_CHARS:,} characters; write one object per row"
            )
        if isinstance(error, json.JSONDecodeError):
            self._at = min(error.pos, len(self._buffer))
            return self._error(error.msg[:1].lower() + error.msg[1:])
        return self._error("it contains a number that is out of range")

    def _error(self, problem: str) -> UnreadableTable:
        line = self._line + self._buffer.count("\n", 0, self._at)
        return UnreadableTable(f"{self._name} is not valid JSON: line {line}: {problem}.")


def _is_text(value: dict[str, Any]) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
