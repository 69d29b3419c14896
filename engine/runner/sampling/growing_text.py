"""The text of an output as it grows, decoded from its end only."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

Decode = Callable[[Sequence[int]], str]

PROMPT_TAIL_TOKENS = 24  # more than the text of a token depends on, even within a run of byte tokens
_MIN_TAIL_TOKENS = 4
_REPLACEMENT = "\ufffd"
_MAX_UNREAD_TOKENS = 32  # a character takes at most four tokens


class GrowingText:
    """Decodes one token at a time.

    ```
    token ids:  ......... | context | new ...
                       _start     _read          the new text is decode(context + new) less decode(context)
    ```

    The context is needed because a token's text may depend on the token before it (for example, a leading space); the
    first context is the end of the prompt. A character that ends in a token belongs to that token. `_shown` is the
    number of characters of the new text that `push` has returned. Tokens that are `hidden` have no text.

    `bros_batch.text.detokenize` follows the same rules, and a test compares the two.
    """

    __slots__ = ("_decode", "_hidden", "_ids", "_read", "_shown", "_start")

    def __init__(self, decode: Decode, prompt_tail: Sequence[int], hidden: Container[int]) -> None:
        self._decode = decode
        self._hidden = hidden
        self._ids = _tail([token_id for token_id in prompt_tail if token_id not in hidden], decode)
        self._start = 0
        self._read = 0
        self._shown = 0
        self._advance()

    def push(self, token_id: int) -> str:
        """Takes the next output token and returns the text that it completes."""
        if token_id in self._hidden:
            return ""
        self._ids.append(token_id)
        return self._advance()

    def _advance(self) -> str:
        context = len(self._decode(self._ids[self._start : self._read]))
        text = self._decode(self._ids[self._start :])
        # Replacement characters at the end may become a character with the next token.
        uncertain = len(self._ids) - self._read <= _MAX_UNREAD_TOKENS
        certain = text.rstrip(_REPLACEMENT) if uncertain else text
        new = certain[context + self._shown :]
        if len(certain) == len(text) > context:
            self._ids = self._ids[self._read :]
            self._start, self._read, self._shown = 0, len(self._ids), 0
        else:
            self._shown += len(new)
        return new


def _tail(token_ids: list[int], decode: Decode) -> list[int]:
    """Returns the last few tokens, from the beginning of a character: one that is cut spoils the bytes after it."""
    for num_tokens in range(_MIN_TAIL_TOKENS, len(token_ids)):
        if not decode(token_ids[-num_tokens:]).startswith(_REPLACEMENT):
            return token_ids[-num_tokens:]
    return token_ids
