"""Decides which sampled tokens end their request: end of sequence, stop tokens and stop strings."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.core.plan import RowStart
from engine.runner.row_failure import row_failure
from engine.runner.sampling.growing_text import PROMPT_TAIL_TOKENS, Decode, GrowingText

IntArray = npt.NDArray[np.int64]


class StopStrings:
    """Searches the text of a growing output for strings."""

    __slots__ = ("_longest", "_stops", "_tail", "_text")

    def __init__(self, stops: Sequence[str], text: GrowingText) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._text = text
        self._tail = ""  # the end of the text so far, in which a stop string may have begun

    def push(self, token_id: int) -> bool:
        """Takes the next output token. Returns whether one of the strings ends in the text that it completes."""
        new = self._text.push(token_id)
        if not new:
            return False
        window = self._tail + new
        # Only ends within the few new characters are compared, so a token is cheap however long the strings are.
        ends = range(len(self._tail) + 1, len(window) + 1)
        found = any(window.endswith(self._stops, 0, end) for end in ends)
        self._tail = window[-(self._longest - 1) :] if self._longest > 1 else ""
        return found


@dataclass(frozen=True, slots=True)
class StopRule:
    """The conditions that end one request. It remains valid after the request has left its row."""

    token_ids: frozenset[int]
    min_tokens: int
    strings: StopStrings | None

    def ends(self, token_id: int, num_outputs: int) -> bool:
        """Whether `token_id`, the request's output token number `num_outputs` (from 1), ends it.

        The first `min_tokens` tokens never do, and a stop string that ends in one of them is text. If there are stop
        strings, this must be called once for every output token, since they follow the text.
        """
        has_string = self.strings is not None and self.strings.push(token_id)
        return (has_string or token_id in self.token_ids) and num_outputs > self.min_tokens


@dataclass(frozen=True, slots=True)
class StepRules:
    """The rules of a step's rows when it was launched; other requests may hold the rows when it ends."""

    rules: list[StopRule]
    watched: frozenset[int]  # at least the stop tokens of all the rules
    with_strings: list[int]  # which rules have stop strings

    def ends(
        self, token_ids: Sequence[int], num_outputs: IntArray, known: Collection[int] = ()
    ) -> tuple[list[bool], dict[int, str]]:
        """Whether each row's token, its output token number `num_outputs[i]` (from 1), ends its request. And the rows
        for which this cannot be said, because looking at the token raised an error. Tokens of the rows in `known` have
        been looked at before.

        Must be called once. It costs little if no token is a stop token and no row has stop strings.
        """
        ended = [False] * len(self.rules)
        failed: dict[int, str] = {}
        candidates = self.with_strings
        if not self.watched.isdisjoint(token_ids):
            hit = [i for i, token_id in enumerate(token_ids) if token_id in self.watched]
            candidates = sorted({*candidates, *hit})
        for i in candidates:
            if i in known:
                continue
            try:
                ended[i] = self.rules[i].ends(token_ids[i], int(num_outputs[i]))
            except BaseException as error:
                failed[i] = row_failure(error)
        return ended, failed

    def end_among(self, i: int, token_ids: Sequence[int], num_outputs: int) -> int | None:
        """The index of the first of these further tokens of a row that ends its request, or None. `num_outputs`: how
        many it has before them."""
        rule = self.rules[i]
        for number, token_id in enumerate(token_ids, 1):
            if rule.ends(token_id, num_outputs + number):
                return number - 1
        return None


class StopTable:
    """The stop rules of the requests in the slot-table rows. Stop strings need the tokenizer, which is loaded for the
    first of them unless `begin_to_load` was called."""

    def __init__(self, num_rows: int, eos_token_ids: frozenset[int], model: str) -> None:
        self._eos_token_ids = eos_token_ids
        self._model = model
        self._tokenizer: Any = None
        self._loading = threading.Lock()
        self._special: dict[str, int] = {}
        self._special_ids: frozenset[int] = frozenset()
        self._rules = [StopRule(frozenset(), 0, None)] * num_rows
        self._has_strings = np.zeros(num_rows, dtype=bool)
        self._num_watching: Counter[int] = Counter()  # rows, by stop token
        self._watched: frozenset[int] = frozenset()

    def begin_to_load(self) -> None:
        """Loads the tokenizer in a thread of its own, so that no step waits for that later."""

        def load() -> None:
            with contextlib.suppress(Exception):  # those who need it are told
                self._load_tokenizer()

        # Not a daemon: the process would abort if it ended while this thread is in the tokenizer's own code.
        threading.Thread(target=load, name="tokenizer").start()

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
            first = start.num_prompt_tokens
            prompt_tail = start.token_ids[max(0, first - PROMPT_TAIL_TOKENS) : first]
            strings = StopStrings(sampling.stop, GrowingText(decode, prompt_tail, self._special_ids))
            for token_id in start.token_ids[first:]:
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

    def tokenizer(self) -> Any:
        """The tokenizer, loaded now if it has not been. Raises ValueError if none loads."""
        self._load_tokenizer()
        return self._tokenizer

    def _load_tokenizer(self) -> tuple[Decode, dict[str, int]]:
        """Returns the tokenizer's decode function, and the ids of its special tokens by name."""
        with self._loading:
            if self._tokenizer is None:
                from transformers import AutoTokenizer

                try:
                    tokenizer = AutoTokenizer.from_pretrained(self._model, trust_remote_code=False)
                except (OSError, ValueError, KeyError) as error:
                    raise ValueError(
                        f"stop strings need a tokenizer, and the one of {self._model} cannot be loaded"
                    ) from error
                added = tokenizer.added_tokens_decoder.items()
                self._special = {token.content: token_id for token_id, token in added if token.special}
                self._special_ids = frozenset(self._special.values())
                self._tokenizer = tokenizer
        # The backend of a fast tokenizer decodes several times faster than its wrapper.
        decode = (getattr(self._tokenizer, "backend_tokenizer", None) or self._tokenizer).decode
        return lambda token_ids: decode(token_ids, skip_special_tokens=True), self._special
