"""The gate for requests with a grammar: they wait here, outside of the core, until it is compiled."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from engine.core import terms
from engine.runner.base import GrammarCompiler, TooManyGrammars
from engine.wire.json_schemas import UnusableSchema, compilable_text, located
from engine.wire.protocol import Grammar

# Requests with a new grammar, after which others with a new one are rejected for a while.
MAX_WAITING = 256
MAX_KEPT = 256
RETRY_S = 2.0


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
        self._waiting: dict[Grammar, asyncio.Task[terms.Grammar | str]] = {}
        self._known: OrderedDict[Grammar, terms.Grammar | str] = OrderedDict()

    def ready(self, grammar: Grammar) -> terms.Grammar | None:
        """The compiled grammar, or None if it is not known yet. Raises UnusableGrammar."""
        known = self._known.get(grammar)
        if known is None:
            return None
        self._known.move_to_end(grammar)
        if isinstance(known, str):
            raise UnusableGrammar(known)
        self._compiler.begin(known)  # so that it counts as used; it is compiled again if it was forgotten
        return known

    async def compiled(self, grammar: Grammar) -> terms.Grammar:
        """Wait until the grammar is compiled. Raises UnusableGrammar or GrammarsBusy."""
        task = self._waiting.get(grammar)
        if task is None:
            if len(self._waiting) >= MAX_WAITING:
                raise GrammarsBusy
            task = asyncio.create_task(self._compile(grammar), name="compile-grammar")
            self._waiting[grammar] = task
        found = await asyncio.shield(task)
        if isinstance(found, str):
            raise UnusableGrammar(found)
        return found

    async def _compile(self, grammar: Grammar) -> terms.Grammar | str:
        """The compiled grammar, or why it cannot be used. Raises GrammarsBusy."""
        try:
            found = await self._judged(grammar)
        except TooManyGrammars:
            raise GrammarsBusy from None
        finally:
            del self._waiting[grammar]
        self._known[grammar] = found
        if len(self._known) > MAX_KEPT:
            self._known.popitem(last=False)
        return found

    async def _judged(self, grammar: Grammar) -> terms.Grammar | str:
        text = grammar.text
        if grammar.kind == "json_schema":
            try:
                text = await self._in_reader(lambda: compilable_text(grammar.text))
            except UnusableSchema as error:
                return f"'grammar' is a JSON schema that is not supported: {error}"
        own = terms.Grammar(grammar.kind, text)
        problem = await asyncio.wrap_future(self._compiler.begin(own))
        if problem is None:
            return own
        if grammar.kind == "json_schema":
            try:
                problem = await self._in_reader(lambda: located(grammar.text, self._problem_of))
            except UnusableSchema as error:
                problem = str(error)
        return f"'grammar' ({grammar.kind}) cannot be used: {problem}"

    def _problem_of(self, text: str) -> str | None:
        """What is wrong with one part of a schema. Runs in the reader, which waits."""
        return self._compiler.begin(terms.Grammar("json_schema", text)).result()

    async def _in_reader(self, function: object) -> str:
        loop = asyncio.get_running_loop()
        result: str = await loop.run_in_executor(self._reader, function)  # type: ignore[arg-type]
        return result
