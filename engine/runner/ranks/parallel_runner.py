"""A model split over several processes, the ranks, one per GPU: a `ModelRunner` that passes every call to all of them.

    engine   launch(plan 1)  launch(plan 2)  result()         closes, or dies
                | | |           | | |          | | |             | | |          a socket to each rank
    ranks    launch(plan 1)  launch(plan 2)  result(), and rank 0 answers       end

The ranks compute together: each makes the same calls in the same order, waits for the others' parts of sums, and
continues with the tokens that rank 0 drew. This process holds no part of the model and waits for sockets only. So it
notices at once when a rank dies, can end the ranks that would wait for that one, and restarts all of them. It does not
need torch.
"""

from __future__ import annotations

import logging
import pickle
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from engine.config import EngineConfig
from engine.core.plan import StepPlan, StepResult
from engine.core.terms import Grammar
from engine.grammars.contract import ANYONE, Asker, GrammarCounts, Problem
from engine.grammars.store import Grammars
from engine.grammars.tokenizer import Vocabulary
from engine.runner.base import RunnerInfo, RunnerRestarted
from engine.runner.ranks.rank_group import RankGroup

log = logging.getLogger("engine.parallel")

# After this many failures in a row, with no completed step in between, the ranks are not restarted again.
_MAX_FAILURES = 3


@dataclass(frozen=True, slots=True)
class ParallelStep:
    """A step under way on all ranks."""

    _runner: ParallelRunner
    prepared_s: float = 0.0  # ranks launch by themselves
    is_replayed: bool = False

    def result(self) -> StepResult:
        """Waits for rank 0. Raises RunnerRestarted if a rank failed and all were restarted, and ChildProcessError or
        UnsupportedModel if they could not be restarted."""
        return self._runner.next_result()


class ParallelGrammars:
    """Grammars that two processes compile at the same time: this one, to find out whether they can be used, and rank 0,
    which computes masks. `tell` sends a command to rank 0."""

    def __init__(self, model: str, vocab_size: int, tell: Callable[[bytes], None]) -> None:
        self._own = Grammars(partial(_vocabulary, model, vocab_size), vocab_size)
        self._tell = tell

    @property
    def counts(self) -> GrammarCounts:
        return self._own.counts

    def begin(self, grammar: Grammar, asker: Asker = ANYONE) -> Future[Problem | None]:
        known = self.counts.num_cached
        future = self._own.begin(grammar, asker)
        if self.counts.num_cached == known:
            self._tell(pickle.dumps((grammar, asker), pickle.HIGHEST_PROTOCOL))
        return future

    def close(self) -> None:
        self._own.close()


def _vocabulary(model: str, vocab_size: int) -> Vocabulary:
    """What grammars need to know of a model. The end tokens that its rank has make no difference to whether a grammar
    can be used."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"grammars need a tokenizer, and the one of {model} cannot be loaded") from error
    return Vocabulary.of(tokenizer, vocab_size, ())


class ParallelRunner:
    """A `ModelRunner` whose work is done by `config.tensor_parallel_size` processes. Used from one thread.

    After any error other than RunnerRestarted it cannot be used any more: its ranks have ended.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Starts the ranks and waits until each has loaded its part. Raises UnsupportedModel, or ChildProcessError if a
        rank ended without saying why."""
        self._config = config
        self._num_failures = 0  # in a row
        self._max_pass_tokens: int | None = None
        self._start()
        self.grammars = ParallelGrammars(
            config.model, self._group.info.vocab_size, lambda command: self._group.ranks[0].tell(command)
        )

    def _start(self) -> None:
        self._under_way: deque[int] = deque()  # number of tokens of each step
        self._group = RankGroup(self._config, self._max_pass_tokens)
        self._group.start()

    @property
    def info(self) -> RunnerInfo:
        info = self._group.info
        return replace(info, device=f"{self._config.tensor_parallel_size} x {info.device}")

    def launch(self, plan: StepPlan) -> ParallelStep:
        self._under_way.append(plan.num_tokens)
        self._group.tell(pickle.dumps(plan, pickle.HIGHEST_PROTOCOL))
        return ParallelStep(self)

    def execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()

    def next_result(self) -> StepResult:
        """The result of the first step under way. Raises the same errors as `ParallelStep.result`."""
        try:
            result = self._group.next_result()
        except ChildProcessError as error:
            self._restart(error)
        self._num_failures = 0
        self._under_way.popleft()
        return result

    def close(self) -> None:
        self.grammars.close()
        self._group.close()

    def _restart(self, error: OSError) -> NoReturn:
        """Starts new ranks in place of those that `error` ended. The scheduler relies on them to have the same
        memory."""
        info = self._group.info
        self._config = replace(
            self._config, num_kv_blocks=info.num_blocks, num_host_slots=info.num_host_slots
        )
        if not self._shorten_passes():
            self._num_failures += 1
        while self._num_failures < _MAX_FAILURES:
            log.error("%s: all ranks are restarted", error)
            try:
                self._start()
            except OSError as another:  # there may be too little memory for a process, too
                error = another
                self._num_failures += 1
                continue
            if self._group.info != info:
                self._group.kill()
                raise ChildProcessError(f"{error}, and the restarted ranks have another model: {self.info}")
            raise RunnerRestarted(str(error)) from error
        raise ChildProcessError(f"{error}; that makes {_MAX_FAILURES} failures in a row") from error

    def _shorten_passes(self) -> bool:
        """If memory ran out in a forward pass, halves their maximum size. Returns False if that is not possible.

        The pass had no more tokens than the largest step under way, and no pass of that size is tried again.
        """
        if not self._group.is_out_of_memory:
            return False
        before = max(self._under_way)
        if self._max_pass_tokens is not None:
            before = min(before, self._max_pass_tokens)
        if before > 1:
            self._max_pass_tokens = before // 2
        return before > 1
