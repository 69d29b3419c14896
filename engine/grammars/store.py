"""The grammars that an engine has compiled: each is compiled once, beside everything else, and shared by all requests.

any thread   begin(grammar) -> a future: None, or why the grammar cannot be used
workers      a judge compiles it first, in a process that may die or be ended; then it is compiled here
the runner   matcher(grammar) -> a copy of the compiled grammar, which takes microseconds
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer

from engine.core.terms import Grammar
from engine.grammars.compiling import UnusableGrammar, compile_grammar, thread_with_stack
from engine.grammars.contract import GrammarCounts, TooManyGrammars
from engine.grammars.judge import Judge
from engine.grammars.judge_process import STACK_BYTES
from engine.grammars.tokenizer import Vocabulary

log = logging.getLogger("engine.grammars")

# A grammar that takes seconds occupies one worker; those of others are compiled by the next.
NUM_WORKERS = 3
MAX_WAITING = 64  # grammars that no worker has begun; then requests with new ones are rejected for a while
MAX_KEPT = 256  # compiled ones, and the reasons why others cannot be used
COMPILER_STACK_BYTES = 4 * STACK_BYTES


class Grammars:
    """Compiled grammars by kind and text. All methods may be called from any thread.

    `vocabulary` is called by the first worker that needs it; if it raises ValueError, no grammar can be used. The model
    has `vocab_size` logits.
    """

    def __init__(self, vocabulary: Callable[[], Vocabulary], vocab_size: int) -> None:
        # The threads that compute masks, and follow a grammar as deep as a compiler does, get the same stack.
        os.environ.setdefault("RUST_MIN_STACK", str(COMPILER_STACK_BYTES))
        self._load = vocabulary
        self._num_words_without = -(-vocab_size // 32)  # a tokenizer
        self._lock = threading.Lock()
        self._wanted = threading.Condition(self._lock)
        self._waiting: deque[tuple[Grammar, Future[str | None]]] = deque()
        self._known: OrderedDict[Grammar, Future[str | None]] = OrderedDict()
        self._compiled: dict[Grammar, LLMatcher] = {}
        self._num_workers = self._num_idle = 0
        self._is_closed = False
        self._loading = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._vocabulary: Vocabulary | None = None
        self._unusable: str | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._judges: list[Judge] = []
        self.counts = GrammarCounts()

    # What lanes and runners ask ---------------------------------------------------------------------------

    def begin(self, grammar: Grammar) -> Future[str | None]:
        """Begins to compile the grammar, unless it is known. The result is None, or why it cannot be used. Raises
        TooManyGrammars."""
        with self._lock:
            known = self._known.get(grammar)
            if known is not None:
                self._known.move_to_end(grammar)
                self.counts.num_cached += 1
                return known
            if len(self._waiting) >= MAX_WAITING:
                raise TooManyGrammars(f"{len(self._waiting)} other grammars wait to be compiled")
            future: Future[str | None] = Future()
            self._known[grammar] = future
            self._forget_oldest()
            self._waiting.append((grammar, future))
            if self._num_idle < len(self._waiting) and self._num_workers < NUM_WORKERS:
                self._num_workers += 1
                thread_with_stack(COMPILER_STACK_BYTES, self._work, f"grammars-{self._num_workers}")
            self._wanted.notify()
        return future

    def matcher(self, grammar: Grammar) -> LLMatcher:
        """A matcher before its first token. Compiles the grammar now if it is not known, which it is if `begin` was
        called for the request. Raises UnusableGrammar."""
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = compile_grammar(grammar, self.tokenizer())
        return compiled.deep_copy()

    def tokenizer(self) -> LLTokenizer:
        """The tokenizer, loaded now if it has not been. Raises UnusableGrammar if the model's is of no use."""
        with self._loading:
            if self._unusable is None and self._tokenizer is None:
                try:
                    self._vocabulary = self._load()
                    self._tokenizer = self._vocabulary.build()
                except (ValueError, OSError) as error:
                    self._unusable = str(error)
            if self._tokenizer is None:
                raise UnusableGrammar(self._unusable or "the tokenizer cannot be loaded")
            return self._tokenizer

    @property
    def num_mask_words(self) -> int:
        """The number of 32-bit words of a mask, once the tokenizer is loaded."""
        return -(-self._vocabulary.mask_bits // 32) if self._vocabulary else self._num_words_without

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens that stand for the end in masks, once the tokenizer is loaded."""
        return self._vocabulary.eos_token_ids if self._vocabulary else ()

    def close(self) -> None:
        """Ends the workers and their judges; what waits is not compiled."""
        with self._lock:
            self._is_closed = True
            self._waiting.clear()
            self._wanted.notify_all()
            judges = list(self._judges)
        for judge in judges:
            judge.close()
        if self._directory is not None:
            self._directory.cleanup()

    # Workers ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # of this thread, on Linux
        except OSError:
            log.debug("the priority of a thread cannot be lowered")
        judge: Judge | None = None
        while True:
            with self._lock:
                self._num_idle += 1
                self._wanted.wait_for(lambda: self._waiting or self._is_closed)
                self._num_idle -= 1
                if self._is_closed:
                    return
                grammar, future = self._waiting.popleft()
            started_s = time.monotonic()
            try:
                if judge is None:
                    judge = self._new_judge()
                problem = self._compile(grammar, judge)
            except UnusableGrammar as error:
                problem = str(error)
            except BaseException as error:
                log.exception("a grammar could not be compiled")
                problem = f"the engine could not compile it ({type(error).__name__})"
            with self._lock:
                self.counts.compile_s += time.monotonic() - started_s
                if problem is None:
                    self.counts.num_compiled += 1
                else:
                    self.counts.num_failed += 1
            future.set_result(problem)

    def _new_judge(self) -> Judge:
        self.tokenizer()
        assert self._vocabulary is not None
        with self._lock:
            if self._directory is None:
                self._directory = tempfile.TemporaryDirectory(prefix="bros-grammars-")
                text = json.dumps(dataclasses.asdict(self._vocabulary))
                Path(self._directory.name, "vocabulary.json").write_text(text)
            judge = Judge(Path(self._directory.name, "vocabulary.json"))
            self._judges.append(judge)
            return judge

    def _compile(self, grammar: Grammar, judge: Judge) -> str | None:
        problem = judge.problem_with(grammar)
        if problem is not None:
            return problem
        compiled = compile_grammar(grammar, self.tokenizer())
        with self._lock:
            if grammar in self._known:
                self._compiled[grammar] = compiled
        return None

    def _forget_oldest(self) -> None:
        """Forgets grammars that were not asked for lately. Requests that have a matcher keep it."""
        while len(self._known) > MAX_KEPT:
            grammar, future = next(iter(self._known.items()))
            if not future.done():
                return
            del self._known[grammar]
            self._compiled.pop(grammar, None)
