"""Tokens to text as they come: never half a character, never the beginning of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

# A character of UTF-8 is at most four byte tokens; text that still ends in a replacement character after more
# tokens than this is not waiting for the rest of one.
MAX_WINDOW_TOKENS = 32
REPLACEMENT = "\ufffd"


class TextStream(Protocol):
    """Text of one output. What `push` and then `finish` gave, joined, is the text of all the tokens."""

    def push(self, token_ids: Iterable[int]) -> str:
        """The further text that is certain, now that `token_ids` follow."""
        ...

    def finish(self) -> str:
        """What is left: replacement characters for bytes that never became a character."""
        ...


class ByteStream:
    """For byte-level vocabularies, where a token is some bytes."""

    __slots__ = ("_bytes_of", "_decoder")

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        return self._decoder.decode(b"".join(map(self._bytes_of, token_ids)))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowStream:
    """For all others, where a token's text depends on those before it (a space at the start, for one).

    ```
    token ids:  ......... | context | new ...
                       _start     _read          decode(context + new) minus decode(context) is new's text
    ```
    """

    __slots__ = ("_decode", "_ids", "_read", "_start")

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, token_ids: Iterable[int]) -> str:
        self._ids.extend(token_ids)
        return self._advance(final=False)

    def finish(self) -> str:
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        context = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        unread = len(self._ids) - self._read
        if not unread or (text.endswith(REPLACEMENT) and not final and unread <= MAX_WINDOW_TOKENS):
            return ""
        if len(text) <= len(context) and not final:
            return ""
        self._ids = self._ids[self._read :]
        self._start, self._read = 0, len(self._ids)
        return text[len(context) :]


class StopCutter:
    """Cuts text at the first stop string; holds back the end of a text that may be the beginning of one."""

    __slots__ = ("_longest", "_pending", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._pending = ""
        self.stopped = False

    def push(self, text: str, armed: bool = True) -> str:
        """The further text to show. A stop string that ends in `text` counts where `armed`: what comes after
        it is dropped, and `stopped` is true from then on."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        held = len(self._pending)
        text = self._pending + text
        if armed:
            # A match must end in the new text: an earlier one came while unarmed.
            matches = (text.find(stop, max(0, held - len(stop) + 1)) for stop in self._stops)
            start = min((match for match in matches if match >= 0), default=-1)
            if start >= 0:
                self.stopped = True
                self._pending = ""
                return text[:start]
        keep = self._held_back(text)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, as no more text follows."""
        text, self._pending = self._pending, ""
        return text

    def _held_back(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string without completing it."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-length:]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stops):
                return length
        return 0
