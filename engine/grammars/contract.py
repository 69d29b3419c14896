"""What lanes and runners know of grammars: that they are compiled before a request may use them."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from engine.core.terms import Grammar


class TooManyGrammars(Exception):
    """More grammars of one asker wait to be compiled than may wait. The message says how many."""


@dataclass(frozen=True, slots=True)
class Asker:
    """On whose behalf a grammar is compiled: askers take turns, and those of chats go before those of bulk."""

    owner: str = ""
    is_bulk: bool = False


ANYONE = Asker()


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a grammar cannot be used.

    `is_costly`: the grammar as a whole takes more time or memory than one may, so no part of it is wrong by itself.
    """

    text: str
    is_costly: bool = False


@dataclass(slots=True)
class GrammarCounts:
    """What a runner has done for grammars: compiled them (`num_cached`: they were known already), computed masks, and
    appended forced tokens. `num_failed` counts those that cannot be used."""

    num_compiled: int = 0
    num_cached: int = 0
    num_failed: int = 0
    compile_s: float = 0.0
    num_masks: int = 0
    mask_s: float = 0.0
    num_forced_tokens: int = 0


class GrammarCompiler(Protocol):
    """Compiles grammars beside the steps."""

    @property
    def counts(self) -> GrammarCounts: ...

    def begin(self, grammar: Grammar, asker: Asker = ANYONE) -> Future[Problem | None]:
        """Begins to compile a grammar, from any thread. The result is None once requests may use it, or why they
        cannot. Raises TooManyGrammars, and so may the future."""


class AnyGrammar:
    """The `GrammarCompiler` of a runner that makes up its tokens: any grammar will do, and changes nothing."""

    def __init__(self) -> None:
        self.counts = GrammarCounts()

    def begin(self, grammar: Grammar, asker: Asker = ANYONE) -> Future[Problem | None]:
        done: Future[Problem | None] = Future()
        done.set_result(None)
        return done
