"""The gate for requests with a grammar: they wait here, outside of the core, until it is compiled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from engine.core import terms
from engine.grammars.contract import ANYONE, Asker, GrammarCompiler, TooManyGrammars
from engine.grammars.turns import FairQueue
from engine.wire.json_schemas import compilable_text
from engine.wire.request_terms import Grammar
from engine.wire.schema_errors import located
from engine.wire.schema_keywords import UnusableSchema

log = logging.getLogger("engine.io")

# Grammars of one asker that are not compiled, after which its requests with a new one are rejected for a while.
MAX_WAITING = 256
MAX_KEPT = 256
NAMES = {"regex": "regular expression", "lark": "Lark grammar"}
RETRY_S = 2.0
LOCATE_S = 5.0  # so long the compiler looks for the place of an error

# The compiled grammar, or why it cannot be used, or why it is not compiled now.
_Found = terms.Grammar | str | TooManyGrammars


class UnusableGrammar(ValueError):
    """A grammar that cannot be used. The message says why, in the words of whoever wrote it."""


class GrammarsBusy(Exception):
    """Too many grammars of one asker wait to be compiled; a request may come again after `RETRY_S`."""


class GrammarGate:
    """Turns the grammars of requests into those that the runner has compiled. Belongs to the I/O thread.

    A grammar is checked and compiled once, in other threads; the requests of a job share it.
    """

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        # Reading a schema takes a while if it is large. One after the other: this holds the interpreter.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="schemas")
        self._is_reading = False
        self._to_read: FairQueue[asyncio.Future[None]] = FairQueue()
        self._locator = ThreadPoolExecutor(1, thread_name_prefix="schema-errors")
        self._waiting: dict[Asker, dict[Grammar, asyncio.Task[_Found]]] = {}
        self._known: OrderedDict[Grammar, terms.Grammar | str] = OrderedDict()

    def ready(self, grammar: Grammar, asker: Asker = ANYONE) -> terms.Grammar | None:
        """The compiled grammar, or None if it is not known yet. Raises UnusableGrammar."""
        known = self._known.get(grammar)
        if known is None:
            return None
        self._known.move_to_end(grammar)
        if isinstance(known, str):
            raise UnusableGrammar(known)
        with suppress(TooManyGrammars):  # the compiler may have forgotten it, and then compiles it again
            if self._compiler.begin(known, asker).done():
                return known
        del self._known[grammar]
        return None

    async def compiled(self, grammar: Grammar, asker: Asker = ANYONE) -> terms.Grammar:
        """Wait until the grammar is compiled. Raises UnusableGrammar or GrammarsBusy."""
        waiting = self._waiting.setdefault(asker, {})
        task = waiting.get(grammar)
        if task is None:
            if len(waiting) >= MAX_WAITING:
                raise GrammarsBusy(f"{len(waiting)} other grammars of yours wait to be compiled")
            task = asyncio.create_task(self._compile(grammar, asker), name="compile-grammar")
            waiting[grammar] = task
        found = await asyncio.shield(task)
        if isinstance(found, TooManyGrammars):
            raise GrammarsBusy(str(found))
        if isinstance(found, str):
            raise UnusableGrammar(found)
        return found

    async def compiled_at_last(self, grammar: Grammar, asker: Asker = ANYONE) -> terms.Grammar:
        """Wait until the grammar is compiled, even if many others are before. Raises UnusableGrammar."""
        while True:
            try:
                return self.ready(grammar, asker) or await self.compiled(grammar, asker)
            except GrammarsBusy:
                await asyncio.sleep(RETRY_S)

    async def _compile(self, grammar: Grammar, asker: Asker) -> _Found:
        try:
            found = await self._judged(grammar, asker)
        except TooManyGrammars as error:
            return error
        except Exception as error:
            log.exception("a grammar could not be compiled")
            return f"'grammar' could not be compiled ({type(error).__name__})"
        finally:
            del self._waiting[asker][grammar]
            if not self._waiting[asker]:
                del self._waiting[asker]
        self._known[grammar] = found
        if len(self._known) > MAX_KEPT:
            self._known.popitem(last=False)
        return found

    async def _plain_text(self, schema: str, asker: Asker) -> str:
        """The form of a schema that is compiled. Raises UnusableSchema."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._to_read.add(turn, asker)
        self._read_next()
        await turn
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, compilable_text, schema)
        finally:
            self._is_reading = False
            self._read_next()

    def _read_next(self) -> None:
        while self._to_read and not self._is_reading:
            turn = self._to_read.pop()
            if not turn.cancelled():
                self._is_reading = True
                turn.set_result(None)

    async def _judged(self, grammar: Grammar, asker: Asker) -> terms.Grammar | str:
        text, loop = grammar.text, asyncio.get_running_loop()
        if grammar.kind == "json_schema":
            try:
                text = await self._plain_text(grammar.text, asker)
            except UnusableSchema as error:
                return f"'grammar' is a JSON schema that is not supported: {error}"
        own = terms.Grammar(grammar.kind, text)
        problem = await asyncio.wrap_future(self._compiler.begin(own, asker))
        if problem is None:
            return own
        if grammar.kind == "json_schema":
            why = problem.text
            if not problem.is_costly:
                why = await loop.run_in_executor(self._locator, self._located, grammar.text, why, asker)
            return f"'grammar' is a JSON schema that is not supported: {why}"
        return f"'grammar' is not a usable {NAMES[grammar.kind]}: {problem.text}"

    def _located(self, text: str, problem: str, asker: Asker) -> str:
        """The problem with a schema, with its place if that is found soon. Runs in the locator, which may wait."""
        end_s = time.monotonic() + LOCATE_S

        def problem_of(part: str) -> str | None:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return None
            with suppress(TooManyGrammars, TimeoutError):
                found = self._compiler.begin(terms.Grammar("json_schema", part), asker).result(left_s)
                return None if found is None or found.is_costly else found.text
            return None

        try:
            return located(text, problem, problem_of)
        except UnusableSchema as error:
            return str(error)
