"""Compiles a grammar within limits, so that no step takes long because of it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.core.terms import Grammar
from engine.grammars.contract import Problem
from engine.grammars.errors import NOTHING_MATCHES, explained

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# A mask takes a few milliseconds at most: llguidance does about 14,000 units of the first and 20,000 of the second in
# one. Grammars of real schemas take a hundredth of that.
STEP_LEXER_FUEL, STEP_MAX_ITEMS, MAX_LEXER_STATES = 100_000, 50_000, 50_000
MAX_ERROR_CHARS = 500


class UnusableGrammar(ValueError):
    """A grammar that does not compile, or whose masks would take too long."""

    def __init__(self, text: str, *, is_costly: bool = False) -> None:
        super().__init__(text)
        self.problem = Problem(text, is_costly)


def compile_grammar(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    """The matcher before its first token. Raises UnusableGrammar. The interpreter is free for others meanwhile.

    A JSON schema must be in the plain form of `engine.wire.json_schemas`, since llguidance ignores some keywords.
    """
    from llguidance import (
        LLMatcher,
        LLParserLimits,
    )  # imported where it is used, so that a runner works without it

    limits = LLParserLimits(
        step_lexer_fuel=STEP_LEXER_FUEL,
        step_max_items=STEP_MAX_ITEMS,
        max_lexer_states=MAX_LEXER_STATES,
        verbose_errors=False,
    )
    try:
        matcher = LLMatcher(tokenizer, _source(grammar), log_level=0, limits=limits)
    except (ValueError, OverflowError) as error:  # of text that has no UTF-8 form, among others
        raise _unusable(grammar, str(error)) from None
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise _unusable(grammar, matcher.get_error())
    if matcher.is_stopped() and not matcher.is_accepting():
        raise _unusable(grammar, NOTHING_MATCHES)
    return matcher


def _unusable(grammar: Grammar, error: str) -> UnusableGrammar:
    """The error in our words. That of a JSON schema is needed as it is, to find its place in the schema."""
    error = error.strip() or "it cannot be compiled"
    return UnusableGrammar(_shortened(error if grammar.kind == "json_schema" else explained(grammar, error)))


def _source(grammar: Grammar) -> str:
    from llguidance import LLMatcher

    match grammar.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(grammar.text, overrides={"lenient": False})
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.text)


def _shortened(error: str) -> str:
    return error if len(error) <= MAX_ERROR_CHARS else f"{error[:MAX_ERROR_CHARS]} ..."


_stack_size = threading.Lock()


def thread_with_stack(num_bytes: int, target: Callable[[], None], name: str) -> threading.Thread:
    """Starts a daemon thread with a stack of this size: compilers descend into what they compile."""
    with _stack_size:
        before = threading.stack_size(num_bytes)
        try:
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    return thread


def wait_for_idle_cpu() -> None:
    """Lets this thread compute only where no other wants to, from now on. Elsewhere than on Linux, nothing changes.

    A low priority (`nice`) is not enough: a thread that has begun to run keeps its CPU for a millisecond or two, and
    the threads of a step wait for each other hundreds of times.
    """
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
