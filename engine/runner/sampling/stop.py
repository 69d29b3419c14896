"""Decides which sampled tokens end their request: end of sequence, stop tokens and stop strings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.core.plan import RowStart
from engine.runner.row_failure import row_failure

Decode = Callable[[Sequence[int]], str]
IntArray = npt.NDArray[np.int64]
_REPLACEMENT = "�"
_TRIM_TOKENS = 64


class StopStrings:
    """Searches the text of a growing output for strings, decoding only its end.

    ```
    token ids:  ......... | context | new ...
                       _start     _read          the new text is decode(context + new) less decode(context)
    ```
    The context is needed because a token's text may depend on the token before it (for example, a leading space).
    """

    __slots__ = ("_decode", "_ids", "_longest", "_num_searched", "_read", "_start", "_stops", "_tail")

    def __init__(self, stops: Sequence[str], decode: Decode) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        self._read = 0
        self._tail = ""  # the end of the text so far, in which a stop string may have begun
        self._num_searched = 0  # characters after the tail that earlier tokens had completed

    def push(self, token_id: int) -> bool:
        """Takes the next output token. Returns whether one of the strings ends in the text that it completes."""
        self._ids.append(token_id)
        context = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        new = text[len(context) :]
        window = self._tail + new
        num_old = len(self._tail) + self._num_searched
        # Only ends within the few new characters are compared, so a token is cheap however long the strings are.
        found = any(window.endswith(self._stops, 0, end) for end in range(num_old + 1, len(window) + 1))
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._read < _TRIM_TOKENS:
            self._num_searched = len(new.rstrip(_REPLACEMENT))
            return found  # perhaps the middle of a character: it is decoded again with the next token
        self._num_searched = 0
        self._start, self._read = self._read, len(self._ids)
        if self._start > _TRIM_TOKENS:
            del self._ids[: self._start]
            self._start, self._read = 0, self._read - self._start
        self._tail = window[-(self._longest - 1) :] if self._longest > 1 else ""
        return found


@dataclass(frozen=True, slots=True)
class StopRule:
    """The conditions that end one request. It remains valid after the request has left its row."""

    token_ids: frozenset[int]
    min_tokens: int
    strings: StopStrings | None

    def ends(self, token_id: int, num_outputs: int) -> bool:
        """Whether `token_id`, the request's output token number `num_outputs` (from 1), ends it: none of the first
        `min_tokens` does.

        If there are stop strings, this must be called once for every output token, since they follow the text.
        """
        has_string = self.strings is not None and self.strings.push(token_id)
        return (has_string or token_id in self.token_ids) and num_outputs > self.min_tokens


@dataclass(frozen=True, slots=True)
class StepRules:
    """The rules of a step's rows when it was launched; other requests may hold the rows when it ends."""

    rules: list[StopRule]
    watched: frozenset[int]  # at least the stop tokens of all the rules
    with_strings: list[int]  # which rules have stop strings

    def ends(self, token_ids: Sequence[int], num_outputs: IntArray) -> tuple[list[bool], dict[int, str]]:
        """Whether each row's token, its output token number `num_outputs[i]` (from 1), ends its request. And the rows
        for which this cannot be said, because looking at the token raised an error.

        Must be called once. It costs little if no token is a stop token and no row has stop strings.
        """
        ended = [False] * len(self.rules)
        failed: dict[int, str] = {}
        candidates = self.with_strings
        if not self.watched.isdisjoint(token_ids):
            hit = [i for i, token_id in enumerate(token_ids) if token_id in self.watched]
            candidates = sorted({*candidates, *hit})
        for i in candidates:
            try:
                ended[i] = self.rules[i].ends(token_ids[i], int(num_outputs[i]))
            except BaseException as error:
                failed[i] = row_failure(error)
        return ended, failed


class StopTable:
    """The stop rules of the requests in the slot-table rows. The first stop string loads the tokenizer."""

    def __init__(self, num_rows: int, eos_token_ids: frozenset[int], model: str) -> None:
        self._eos_token_ids = eos_token_ids
        self._model = model
        self._tokenizer: Any = None
        self._special: dict[str, int] = {}
        self._rules = [StopRule(frozenset(), 0, None)] * num_rows
        self._has_strings = np.zeros(num_rows, dtype=bool)
        self._num_watching: Counter[int] = Counter()  # rows, by stop token
        self._watched: frozenset[int] = frozenset()

    def start(self, start: RowStart) -> None:
        """Assigns row `start.row` to this request. Raises ValueError if it has stop strings and no tokenizer loads."""
        sampling = start.sampling
        token_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            token_ids = token_ids | self._eos_token_ids if token_ids else self._eos_token_ids
        strings = None
        if sampling.stop:
            decode, special = self._load_tokenizer()
            # The text omits special tokens, so a stop string that names one is treated as a stop token.
            token_ids |= {special[stop] for stop in sampling.stop if stop in special}
            strings = StopStrings(sampling.stop, decode)
            for token_id in start.token_ids[start.num_prompt_tokens :]:
                strings.push(token_id)
        self._watch(self._rules[start.row].token_ids, token_ids)
        self._rules[start.row] = StopRule(token_ids, sampling.min_tokens, strings)
        self._has_strings[start.row] = strings is not None

    def rules_of(self, rows: IntArray) -> StepRules:
        """The rules of the requests that hold these slot-table rows now."""
        table = self._rules
        with_strings = np.flatnonzero(self._has_strings[rows]).tolist()
        return StepRules([table[row] for row in rows.tolist()], self._watched, with_strings)

    def _watch(self, before: frozenset[int], after: frozenset[int]) -> None:
        """Updates the watched tokens when the stop tokens of a row change."""
        if before == after:
            return
        self._num_watching.subtract(before)
        self._num_watching.update(after)
        self._watched = frozenset(token_id for token_id, rows in self._num_watching.items() if rows)
        if len(self._num_watching) > 2 * len(self._watched) + 64:
            self._num_watching = +self._num_watching  # drops tokens that no row has

    def _load_tokenizer(self) -> tuple[Decode, dict[str, int]]:
        """Returns the tokenizer's decode function, and the ids of its special tokens by name."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self._model, trust_remote_code=False)
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(
                    f"stop strings need a tokenizer, and the one of {self._model} cannot be loaded"
                ) from error
            added = self._tokenizer.added_tokens_decoder.items()
            self._special = {token.content: token_id for token_id, token in added if token.special}
        # The backend of a fast tokenizer decodes several times faster than its wrapper.
        decode = (getattr(self._tokenizer, "backend_tokenizer", None) or self._tokenizer).decode
        return lambda token_ids: decode(token_ids, skip_special_tokens=True), self._special
