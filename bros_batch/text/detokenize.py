"""Incremental detokenization: token ids to text as they arrive, never splitting a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

# A UTF-8 character takes at most four byte tokens. Text that still ends in a replacement character after more tokens
# than this is not waiting for the rest of a character.
MAX_WINDOW_TOKENS = 32
REPLACEMENT = "\ufffd"


class TextStream(Protocol):
    """Incremental decoder of one output. The results of `push` and `finish`, joined, are the text of all tokens."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Append `token_ids` and return the additional text that is certain."""
        ...

    def finish(self) -> str:
        """Return the remaining text: replacement characters for bytes that did not form a character."""
        ...


class ByteStream:
    """Decoder for byte-level vocabularies, in which each token is a sequence of bytes."""

    __slots__ = ("_bytes_of", "_decoder")

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        return self._decoder.decode(b"".join(map(self._bytes_of, token_ids)))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowStream:
    """Decoder for all other vocabularies, in which the text of a token depends on the tokens before it.

    (A space at the start of a word is an example.) It decodes a window of recent tokens:

    ```
    token ids:  ......... | context | new ...
                       _start     _read          text of new = decode(context + new) minus decode(context)
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
