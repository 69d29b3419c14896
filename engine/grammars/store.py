"""The grammars that an engine has compiled: each is compiled once, beside everything else, and shared by all requests.

any thread   begin(grammar) -> a future: None, or why the grammar cannot be used
workers      a judge compiles it first, in a process that may die or be ended; then it is compiled here
the runner   matcher(grammar) -> a copy of the compiled grammar, which takes microseconds

How long a grammar takes is not known before it is compiled. So each may first take a little time; if that is not
enough, it waits for a longer turn, behind all grammars that have had fewer turns. One worker gives first turns, and
another one all later ones, so that a quick grammar never waits for one that takes seconds. Among those that wait for
the same turn, the owners of the requests alternate, so that nobody waits for all grammars of somebody else.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.core.terms import Grammar
from engine.grammars.allowance import Allowance
from engine.grammars.compiling import UnusableGrammar, compile_grammar, thread_with_stack
from engine.grammars.contract import ANYONE, Asker, GrammarCounts, Problem, TooManyGrammars
from engine.grammars.judge import Judge, JudgeEnded, Verdict
from engine.grammars.judge_process import STACK_BYTES
from engine.grammars.tokenizer import GrammarTokenizer, Vocabulary
from engine.grammars.turns import FairQueue

if TYPE_CHECKING:
    from llguidance import LLMatcher

log = logging.getLogger("engine.grammars")

# Of processor time, in each turn. Grammars of real schemas take 1 to 7 ms.
TURNS_S = (0.05, 0.5, 5.0)
NUM_WORKERS = 2  # the first gives first turns, the other one all later ones
# Grammars of one asker that wait for their first turn, and for later ones; then its requests with new ones are rejected
# for a while.
MAX_WAITING = 64
MAX_UNFINISHED = 16
MAX_KEPT = 256  # compiled ones, and the reasons why others cannot be used
COMPILER_STACK_BYTES = 4 * STACK_BYTES


@dataclass(slots=True)
class _Wanted:
    """A grammar that is not compiled yet. `turn` is the one for which it waits; None while it has one."""

    future: Future[Problem | None]
    askers: set[Asker]
    turn: int | None = None


class Grammars:
    """Compiled grammars by kind and text. All methods may be called from any thread. Its arguments are those of
    `GrammarTokenizer`; the first worker that needs the tokenizer loads it."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], vocab_size: int) -> None:
        # The threads that compute masks, and follow a grammar as deep as a compiler does, get the same stack.
        os.environ.setdefault("RUST_MIN_STACK", str(COMPILER_STACK_BYTES))
        self.tokenizer = GrammarTokenizer(vocabulary, vocab_size)
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._turns_s = TURNS_S
        self._wanted: dict[Grammar, _Wanted] = {}
        self._waiting: list[FairQueue[Grammar]] = [FairQueue() for _ in TURNS_S]  # for each turn
        self._known: OrderedDict[Grammar, Future[Problem | None]] = OrderedDict()
        self._compiled: dict[Grammar, LLMatcher] = {}
        self._workers: set[int] = set()  # those that have been started
        self._is_closed = False
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._judge: Judge | None = None
        self._allowance = Allowance()  # of first turns, which one worker gives
        self.counts = GrammarCounts()

    # What lanes and runners ask ---------------------------------------------------------------------------

    def begin(self, grammar: Grammar, asker: Asker = ANYONE) -> Future[Problem | None]:
        """Begins to compile the grammar, unless it is known. The result is None, or why it cannot be used. Raises
        TooManyGrammars, and so may the future, if many others of this asker wait already."""
        with self._lock:
            known = self._known.get(grammar)
            if known is not None:
                self._known.move_to_end(grammar)
                self.counts.num_cached += 1
                self._ask_too(grammar, asker)
                return known
            num_waiting = self._waiting[0].num_of(asker)
            if num_waiting >= MAX_WAITING:
                raise TooManyGrammars(f"{num_waiting} other grammars of yours wait to be compiled")
            future: Future[Problem | None] = Future()
            future.set_running_or_notify_cancel()  # from now on, it cannot be cancelled
            self._known[grammar] = future
            self._forget_oldest()
            self._wanted[grammar] = _Wanted(future, {asker})
            self._wait(grammar, 0)
        return future

    def matcher(self, grammar: Grammar) -> LLMatcher:
        """A matcher before its first token. Compiles the grammar now if it is not known, which it is if `begin` was
        called for the request. Raises UnusableGrammar."""
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = compile_grammar(grammar, self.tokenizer.loaded())
        return compiled.deep_copy()

    def close(self) -> None:
        """Ends the workers and their judge; what waits is not compiled."""
        with self._lock:
            self._is_closed = True
            for each in self._waiting:
                each.clear()
            self._arrived.notify_all()
            judge = self._judge
        if judge is not None:
            judge.close()
        if self._directory is not None:
            self._directory.cleanup()

    # Workers ------------------------------------------------------------------------------------------------

    def _ask_too(self, grammar: Grammar, asker: Asker) -> None:
        """Has a grammar wait on behalf of this asker, too, unless it is compiled. The lock is held."""
        wanted = self._wanted.get(grammar)
        if wanted is not None and asker not in wanted.askers:
            wanted.askers.add(asker)
            if wanted.turn is not None:
                self._waiting[wanted.turn].add(grammar, asker)

    def _wait(self, grammar: Grammar, turn: int) -> None:
        """Has a grammar wait for a turn. The lock is held."""
        wanted = self._wanted[grammar]
        wanted.turn = turn
        for asker in wanted.askers:
            self._waiting[turn].add(grammar, asker)
        self._arrived.notify_all()
        worker = min(turn, 1)
        if worker < NUM_WORKERS and worker not in self._workers:
            self._workers.add(worker)
            threading.Thread(
                target=self._work, args=(worker,), name=f"grammars-{worker}", daemon=True
            ).start()

    def _work(self, worker: int) -> None:
        turns = range(1) if worker == 0 else range(1, len(self._turns_s))

        def next_turn() -> int | None:
            return next((turn for turn in turns if self._waiting[turn]), None)

        while True:
            with self._lock:
                self._arrived.wait_for(lambda: self._is_closed or next_turn() is not None)
                turn = next_turn()
                if self._is_closed or turn is None:
                    return
                grammar = self._waiting[turn].pop()
                wanted = self._wanted[grammar]
                wanted.turn = None
            started_s = time.monotonic()
            compiled: LLMatcher | None = None
            problem: Problem | None = None
            try:
                compiled = self._compiled_in_turn(grammar, worker, turn)
            except UnusableGrammar as error:
                problem = error.problem
            except BaseException as error:
                if not self._is_closed:
                    log.exception("a grammar could not be compiled")
                problem = Problem(f"the engine could not compile it ({type(error).__name__})")
            with self._lock:
                self.counts.compile_s += time.monotonic() - started_s
                if compiled is not None:
                    self.counts.num_compiled += 1
                    if grammar in self._known:
                        self._compiled[grammar] = compiled
                elif problem is not None:
                    self.counts.num_failed += 1
                if compiled is not None or problem is not None:
                    del self._wanted[grammar]
            if compiled is None and problem is None:
                self._wait_again(grammar, turn + 1)
            else:
                wanted.future.set_result(problem)

    def _wait_again(self, grammar: Grammar, turn: int) -> None:
        """Has a grammar wait for its next turn, on behalf of those askers who have not too many others that do."""
        with self._lock:
            wanted = self._wanted[grammar]
            if turn == 1:
                wanted.askers = {
                    asker for asker in wanted.askers if self._num_unfinished(asker) < MAX_UNFINISHED
                }
            if wanted.askers:
                self._wait(grammar, turn)
                return
            del self._known[grammar], self._wanted[grammar]
        text = f"{MAX_UNFINISHED} other grammars of yours that take long wait to be compiled"
        wanted.future.set_exception(TooManyGrammars(text))

    def _num_unfinished(self, asker: Asker) -> int:
        return sum(waiting.num_of(asker) for waiting in self._waiting[1:])

    def _compiled_in_turn(self, grammar: Grammar, worker: int, turn: int) -> LLMatcher | None:
        """The compiled grammar, or None if this turn was too short. Raises UnusableGrammar."""
        is_idle = turn > 0 or not self._allowance.is_left()

        def verdict_of_judge() -> Verdict:
            return self._ready_judge().verdict(worker, grammar, self._turns_s[turn], is_idle=is_idle)

        try:
            verdict = verdict_of_judge()
        except JudgeEnded:  # perhaps because of another grammar
            verdict = verdict_of_judge()
        if not is_idle:
            self._allowance.spend(verdict.cpu_s)
        if verdict.is_unfinished:
            if turn + 1 < len(self._turns_s):
                return None
            raise UnusableGrammar(
                f"it takes more than {self._turns_s[turn]:g} s of processor time to compile", is_costly=True
            )
        if verdict.problem is not None:
            raise UnusableGrammar(verdict.problem.text, is_costly=verdict.problem.is_costly)
        return self._compiled_here(grammar)

    def _compiled_here(self, grammar: Grammar) -> LLMatcher:
        """Compiles what the judge has allowed. At the usual priority: a thread that waits for idle CPU while it holds
        the interpreter's lock would stop the engine on a busy machine."""
        tokenizer = self.tokenizer.loaded()
        found: list[LLMatcher | BaseException] = []

        def compile_it() -> None:
            try:
                found.append(compile_grammar(grammar, tokenizer))
            except BaseException as error:
                found.append(error)
            self._allowance.spend(time.thread_time())

        thread_with_stack(COMPILER_STACK_BYTES, compile_it, "grammar-compiler").join()
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    def _ready_judge(self) -> Judge:
        self.tokenizer.loaded()
        with self._lock:
            if self._judge is None:
                self._directory = tempfile.TemporaryDirectory(prefix="bros-grammars-")
                path = Path(self._directory.name, "vocabulary.json")
                self.tokenizer.save(path)
                self._judge = Judge(path, NUM_WORKERS)
                if self._is_closed:
                    self._judge.close()
            return self._judge

    def _forget_oldest(self) -> None:
        """Forgets grammars that were not asked for lately. Requests that have a matcher keep it."""
        while len(self._known) > MAX_KEPT:
            grammar, future = next(iter(self._known.items()))
            if not future.done():
                return
            del self._known[grammar]
            self._compiled.pop(grammar, None)
