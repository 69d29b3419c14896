"""The gate for requests with a grammar: they wait here, outside of the core, until it is compiled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from engine.core import terms
from engine.grammars.contract import GrammarCompiler, TooManyGrammars
from engine.wire.json_schemas import compilable_text
from engine.wire.protocol import Grammar
from engine.wire.schema_errors import located
from engine.wire.schema_keywords import UnusableSchema

log = logging.getLogger("engine.io")

# Requests with a new grammar, after which others with a new one are rejected for a while.
MAX_WAITING = 256
MAX_KEPT = 256
NAMES = {"regex": "regular expression", "lark": "Lark grammar"}
RETRY_S = 2.0
LOCATE_S = 5.0  # so long the compiler looks for the place of an error


class UnusableGrammar(ValueError):
    """A grammar that cannot be used. The message says why, in the words of whoever wrote it."""


class GrammarsBusy(Exception):
    """Too many grammars wait to be compiled; a request may come again after `RETRY_S`."""


class GrammarGate:
    """Turns the grammars of requests into those that the runner has compiled. Belongs to the I/O thread.

    A grammar is checked and compiled once, in other threads; the requests of a job share it.
    """

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        # Reading a schema takes a while if it is large. One after the other: this holds the interpreter.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="schemas")
        self._locator = ThreadPoolExecutor(1, thread_name_prefix="schema-errors")
        self._waiting: dict[Grammar, asyncio.Task[terms.Grammar | str | None]] = {}
        self._known: OrderedDict[Grammar, terms.Grammar | str] = OrderedDict()

    def ready(self, grammar: Grammar) -> terms.Grammar | None:
        """The compiled grammar, or None if it is not known yet. Raises UnusableGrammar."""
        known = self._known.get(grammar)
        if known is None:
            return None
        self._known.move_to_end(grammar)
        if isinstance(known, str):
            raise UnusableGrammar(known)
        with suppress(TooManyGrammars):  # the compiler may have forgotten it, and then compiles it again
            if self._compiler.begin(known).done():
                return known
        del self._known[grammar]
        return None

    async def compiled(self, grammar: Grammar) -> terms.Grammar:
        """Wait until the grammar is compiled. Raises UnusableGrammar or GrammarsBusy."""
        task = self._waiting.get(grammar)
        if task is None:
            if len(self._waiting) >= MAX_WAITING:
                raise GrammarsBusy
            task = asyncio.create_task(self._compile(grammar), name="compile-grammar")
            self._waiting[grammar] = task
        found = await asyncio.shield(task)
        if found is None:
            raise GrammarsBusy
        if isinstance(found, str):
            raise UnusableGrammar(found)
        return found

    async def compiled_at_last(self, grammar: Grammar) -> terms.Grammar:
        """Wait until the grammar is compiled, even if many others are before. Raises UnusableGrammar."""
        while True:
            try:
                return self.ready(grammar) or await self.compiled(grammar)
            except GrammarsBusy:
                await asyncio.sleep(RETRY_S)

    async def _compile(self, grammar: Grammar) -> terms.Grammar | str | None:
        """The compiled grammar, or why it cannot be used, or None if too many others wait."""
        try:
            found = await self._judged(grammar)
        except TooManyGrammars:
            return None
        except Exception as error:
            log.exception("a grammar could not be compiled")
            return f"'grammar' could not be compiled ({type(error).__name__})"
        finally:
            del self._waiting[grammar]
        self._known[grammar] = found
        if len(self._known) > MAX_KEPT:
            self._known.popitem(last=False)
        return found

    async def _judged(self, grammar: Grammar) -> terms.Grammar | str:
        text, loop = grammar.text, asyncio.get_running_loop()
        if grammar.kind == "json_schema":
            try:
                text = await loop.run_in_executor(self._reader, compilable_text, grammar.text)
            except UnusableSchema as error:
                return f"'grammar' is a JSON schema that is not supported: {error}"
        own = terms.Grammar(grammar.kind, text)
        problem = await asyncio.wrap_future(self._compiler.begin(own))
        if problem is None:
            return own
        if grammar.kind == "json_schema":
            why = problem.text
            if not problem.is_costly:
                why = await loop.run_in_executor(self._locator, self._located, grammar.text, why)
            return f"'grammar' is a JSON schema that is not supported: {why}"
        return f"'grammar' is not a usable {NAMES[grammar.kind]}: {problem.text}"

    def _located(self, text: str, problem: str) -> str:
        """The problem with a schema, with its place if that is found soon. Runs in the locator, which may wait."""
        end_s = time.monotonic() + LOCATE_S

        def problem_of(part: str) -> str | None:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return None
            with suppress(TooManyGrammars, TimeoutError):
                found = self._compiler.begin(terms.Grammar("json_schema", part)).result(left_s)
                return None if found is None or found.is_costly else found.text
            return None

        try:
            return located(text, problem, problem_of)
        except UnusableSchema as error:
            return str(error)
