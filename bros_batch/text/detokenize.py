"""Incremental detokenization: token ids to text as they arrive, never splitting a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Protocol

# A UTF-8 character takes at most four byte tokens. Text that still ends in a replacement character after more tokens
# than this is not waiting for the rest of a character.
MAX_WINDOW_TOKENS = 32
MIN_TAIL_TOKENS = 4
REPLACEMENT = "\ufffd"
MAX_CHARACTER_BYTES = 4
Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class TextStream(Protocol):
    """Incremental decoder of one output. The results of `push` and `finish`, joined, are the text of all tokens.

    It begins with the last tokens of the prompt, whose text is not repeated: the text of an output is what it adds to
    the text of the prompt. A character that ends in a token belongs to that token. The engine finds stop strings by the
    same rules (`engine.runner.sampling.growing_text`).
    """

    def push(self, token_ids: Iterable[int]) -> str:
        """Append `token_ids` and return the additional text that is certain."""
        ...

    def finish(self) -> str:
        """Return the remaining text: replacement characters for bytes that did not form a character."""
        ...


class ByteStream:
    """Decoder for byte-level vocabularies, in which each token is a sequence of bytes. Tokens that are `hidden` have no
    text."""

    __slots__ = ("_bytes_of", "_decoder", "_hidden")

    def __init__(
        self,
        bytes_of: Callable[[int], bytes],
        prompt_tail: Sequence[int] = (),
        hidden: Container[int] = frozenset(),
    ) -> None:
        self._bytes_of = bytes_of
        self._hidden = hidden
        self._decoder = Utf8Decoder(errors="replace")
        # All that counts of the prompt is a character that it has begun, and UTF-8 shows where one begins.
        ending = b""
        for token_id in reversed(prompt_tail):
            if token_id not in hidden:
                ending = bytes_of(token_id) + ending
                if len(ending) >= MAX_CHARACTER_BYTES:
                    break
        if not ending.isascii():
            self._decoder.decode(ending)

    def push(self, token_ids: Iterable[int]) -> str:
        bytes_of, hidden = self._bytes_of, self._hidden
        shown = [bytes_of(token_id) for token_id in token_ids if token_id not in hidden]
        return self._decoder.decode(b"".join(shown))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowStream:
    """Decoder for all other vocabularies, in which the text of a token depends on the tokens before it.

    (A space at the start of a word is an example.) It decodes a window of recent tokens:

    ```
    token ids:  ......... | context | new ...
                       _start     _read          text of new = decode(context + new) minus decode(context)
    ```

    `_shown` is the number of characters of that text that `push` has returned. Tokens that are `hidden` have no text.
    """

    __slots__ = ("_decode", "_hidden", "_ids", "_read", "_shown", "_start")

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        prompt_tail: Sequence[int] = (),
        hidden: Container[int] = frozenset(),
    ) -> None:
        self._decode = decode
        self._hidden = hidden
        self._ids = _tail([token_id for token_id in prompt_tail if token_id not in hidden], decode)
        self._start = 0
        self._read = 0
        self._shown = 0
        self._advance(final=False)

    def push(self, token_ids: Iterable[int]) -> str:
        self._ids.extend(token_id for token_id in token_ids if token_id not in self._hidden)
        return self._advance(final=False)

    def finish(self) -> str:
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        unread = len(self._ids) - self._read
        if not unread:
            return ""
        context = len(self._decode(self._ids[self._start : self._read]))
        text = self._decode(self._ids[self._start :])
        # Replacement characters at the end may become a character with the next token.
        certain = text if final or unread > MAX_WINDOW_TOKENS else text.rstrip(REPLACEMENT)
        new = certain[context + self._shown :]
        if len(certain) == len(text) > context or final:
            self._ids = self._ids[self._read :]
            self._start, self._read, self._shown = 0, len(self._ids), 0
        else:
            self._shown += len(new)
        return new


def _tail(token_ids: list[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """Return the last few tokens, from the beginning of a character: one that is cut spoils the bytes after it."""
    for num_tokens in range(MIN_TAIL_TOKENS, len(token_ids)):
        if not decode(token_ids[-num_tokens:]).startswith(REPLACEMENT):
            return token_ids[-num_tokens:]
    return token_ids
