"""The grammars of the requests in the slot-table rows: which tokens each may draw next, and what follows of a token.

launch   the tokens so far are known -> masks, computed by other threads -> forward pass | draw from what is allowed
result   a token has arrived -> its matcher takes it -> tokens that must follow it, and whether the output ends
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.core.plan import RowStart
from engine.core.terms import Grammar, SamplingParams
from engine.grammars.compiling import MAX_ERROR_CHARS
from engine.grammars.store import Grammars
from engine.runner.row_failure import row_failure

if TYPE_CHECKING:
    from llguidance import LLMatcher

IntArray = npt.NDArray[np.int64]
Words = npt.NDArray[np.int32]

MAX_MASK_THREADS = 8


class RequestGrammar:
    """The state of one request in its grammar: a function of its output so far, from which it is made.

    `tokens` is the output that the matcher has taken. It may be longer than what was drawn, by the tokens that a step
    under way must draw next because the grammar forces them.
    """

    __slots__ = ("_matcher", "failure", "is_over", "sampling", "tokens")

    def __init__(self, sampling: SamplingParams, output: list[int]) -> None:
        self.sampling = sampling
        self._matcher: LLMatcher | None = None
        self.failure: str | None = None  # why the request cannot go on
        self.tokens = output
        self.is_over = False  # nothing more is drawn

    def matcher(self, make: Callable[[Grammar], LLMatcher]) -> LLMatcher | None:
        """The matcher after all `tokens`, or None if the request has failed."""
        if self._matcher is None and self.failure is None:
            assert self.sampling.grammar is not None
            try:
                self._matcher = make(self.sampling.grammar)
                if self.tokens and not self._matcher.consume_tokens(self.tokens):
                    self.fail(f"its output so far does not fit the grammar: {self._matcher.get_error()}")
            except BaseException as error:
                self.fail(str(error) if isinstance(error, ValueError) else row_failure(error))
        return None if self.failure is not None else self._matcher

    def fail(self, why: str) -> None:
        """Notes that the request cannot go on, and why."""
        self.failure = f"the grammar of this request cannot be followed: {why[:MAX_ERROR_CHARS]}"


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of a step, which another thread computes."""

    index: IntArray  # [m] which of the n draws they are for
    _words: Future[Words]

    def words(self) -> Words:  # [m, W]
        """Waits for the masks."""
        return self._words.result()


@dataclass(frozen=True, slots=True)
class Taken:
    """What follows from the tokens that a step drew, by index into its n draws: the tokens that must follow, the rows
    that end with the last of these, and why rows fail."""

    forced: dict[int, list[int]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)


class StepGrammars:
    """The constrained rows of a step, which other requests may hold when it ends."""

    def __init__(self, table: GrammarTable, states: dict[int, RequestGrammar], num_outputs: IntArray) -> None:
        self._table = table
        self._states = states  # by index into the n draws
        self._num_outputs = num_outputs  # [n] output tokens that each has before its draw

    def begin_masks(self) -> Masks:
        """Begins to compute the masks. The tokens of all earlier steps must have been taken."""
        index = np.fromiter(self._states, dtype=np.int64, count=len(self._states))
        parts = [(state, int(self._num_outputs[i])) for i, state in self._states.items()]
        return Masks(index, self._table.begin_masks(parts))

    def known(self) -> set[int]:
        """The rows whose tokens were forced by the step before, and taken with its token."""
        return {i for i, state in self._states.items() if len(state.tokens) > self._num_outputs[i]}

    def take(self, token_ids: Sequence[int], known: Collection[int], has_ended: Sequence[bool]) -> Taken:
        """Takes the tokens that were drawn. `has_ended[i]`: the token ends its request by other rules."""
        taken = Taken()
        for i, state in self._states.items():
            if i not in known and state.failure is None and not state.is_over:
                forced, is_end = self._table.take(state, token_ids[i], has_ended=has_ended[i])
                if forced:
                    taken.forced[i] = forced
                if is_end:
                    taken.ended.add(i)
            if state.failure is not None:
                taken.failed[i] = state.failure
        return taken


class GrammarTable:
    """The grammars of the requests in the slot-table rows. With `force`, tokens that must follow are not drawn."""

    def __init__(
        self, num_rows: int, eos_token_ids: frozenset[int], grammars: Grammars, *, force: bool
    ) -> None:
        self._grammars = grammars
        self._force = force
        self._eos_token_ids = eos_token_ids
        self._states: dict[int, RequestGrammar] = {}  # by row
        self._is_constrained = np.zeros(num_rows, dtype=bool)
        self._thread: ThreadPoolExecutor | None = None
        self._executor: Any = None

    def start(self, start: RowStart) -> None:
        """Assigns row `start.row` to this request."""
        self._states.pop(start.row, None)
        self._is_constrained[start.row] = start.sampling.grammar is not None
        if start.sampling.grammar is not None:
            output = start.token_ids[start.num_prompt_tokens :]
            self._states[start.row] = RequestGrammar(start.sampling, output)

    def of(self, rows: IntArray, num_outputs: IntArray) -> StepGrammars | None:
        """The constrained ones among these slot-table rows [n], or None. They have `num_outputs` [n] output tokens."""
        picked = np.flatnonzero(self._is_constrained[rows])
        if not len(picked):
            return None
        states = {i: self._states[row] for i, row in zip(picked.tolist(), rows[picked].tolist(), strict=True)}
        return StepGrammars(self, states, num_outputs)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    # Masks ----------------------------------------------------------------------------------------------

    def begin_masks(self, parts: list[tuple[RequestGrammar, int]]) -> Future[Words]:
        """Begins to compute the masks of requests that have this many output tokens."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
            from llguidance import LLExecutor  # a runner works without it until there is a grammar

            self._executor = LLExecutor(min(MAX_MASK_THREADS, os.cpu_count() or 1))
        return self._thread.submit(self._masks, parts)

    def _masks(self, parts: list[tuple[RequestGrammar, int]]) -> Words:
        """[m, W] One mask per part. Where there is no other rule, all tokens are allowed."""
        started_s = time.perf_counter()
        matchers: list[tuple[LLMatcher, int]] = []
        for i, (state, num_outputs) in enumerate(parts):
            if len(state.tokens) <= num_outputs and not state.is_over:
                matcher = state.matcher(self._grammars.matcher)
                if matcher is not None:
                    matchers.append((matcher, i))
        num_words = self._grammars.tokenizer.num_mask_words
        words = np.full((len(parts), num_words), -1, dtype=np.int32)
        if matchers:
            self._executor.unsafe_compute_mask_ptr(matchers, words.ctypes.data, 4 * num_words, len(parts))
        for matcher, i in matchers:
            state = parts[i][0]
            if matcher.is_error():
                state.fail(matcher.get_error())
                words[i] = -1
            elif state.sampling.ignore_eos or not self._eos_token_ids:
                self._forbid_end(words[i])
        for i, (state, num_outputs) in enumerate(parts):
            if len(state.tokens) > num_outputs:
                words[i] = 0
                _bits(words[i])[state.tokens[num_outputs] // 32] = 1 << (state.tokens[num_outputs] % 32)
        counts = self._grammars.counts
        counts.num_masks += len(matchers)
        counts.mask_s += time.perf_counter() - started_s
        return words

    def _forbid_end(self, words: Words) -> None:
        """Forbids the end tokens, unless nothing else is allowed: then the output ends all the same."""
        without = words.copy()
        bits = _bits(without)
        for token_id in self._grammars.tokenizer.end_token_ids:
            bits[token_id // 32] &= np.uint32(~(1 << (token_id % 32)) & 0xFFFF_FFFF)
        if without.any():
            words[:] = without

    # Tokens ---------------------------------------------------------------------------------------------

    def take(self, state: RequestGrammar, token_id: int, *, has_ended: bool) -> tuple[list[int], bool]:
        """Takes the token that was drawn. Returns the tokens that must follow it, and whether the output ends with
        them, because nothing can follow."""
        matcher = state.matcher(self._grammars.matcher)
        if matcher is None:
            return [], False
        state.tokens.append(token_id)
        if not matcher.consume_token(token_id):
            state.fail(matcher.get_error())
            return [], False
        state.is_over = has_ended
        if has_ended:
            return [], False
        sampling, forced = state.sampling, list[int]()
        room = sampling.max_tokens - len(state.tokens)
        if self._force and room > 0 and not matcher.is_stopped():
            forced = matcher.compute_ff_tokens()[:room]
            if forced and not matcher.consume_tokens(forced):
                state.fail(matcher.get_error())
                return [], False
            state.tokens += forced
            self._grammars.counts.num_forced_tokens += len(forced)
        if not matcher.is_stopped():
            return forced, False
        # Only the end token is allowed. It is drawn, like any other token, if it can be and if that tells anything.
        may_draw = not self._force and room > 0 and self._eos_token_ids and not sampling.ignore_eos
        state.is_over = not (may_draw and len(state.tokens) >= sampling.min_tokens)
        return forced, state.is_over


def _bits(words: Words) -> npt.NDArray[np.uint32]:
    return words.view(np.uint32)
