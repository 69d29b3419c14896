"""A model held by several processes, the ranks, one a GPU: a `ModelRunner` that passes every call on to all of them.

    engine   launch(plan 1)  launch(plan 2)  result()         closes, or dies
                | | |           | | |          | | |             | | |          a socket to each rank
    ranks    launch(plan 1)  launch(plan 2)  result(), and rank 0 answers       end

The ranks compute together: each makes the same calls in the same order, waits for the others' parts of sums, and takes
rank 0's tokens for drawn. This process holds no part of the model and waits for sockets only, so that it sees at once
when a rank dies, can end those that would wait for it, and starts all of them anew. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from engine.config import EngineConfig
from engine.core.plan import StepPlan, StepResult
from engine.runner.base import RunnerInfo, RunnerRestarted, UnsupportedModel
from engine.runner.ranks.messages import CLOSE, RESULT, Assignment, Failed, Ready, Unsupported

log = logging.getLogger("engine.parallel")

_PROGRAM = "engine.runner.ranks.rank_process"

# Steps take fractions of a second, and the first ones, which compile kernels, a minute or two.
_STEP_LIMIT_S = 600.0
# What the death of one rank does to the others shows sooner than this; their complaints are not the cause.
_LAST_WORDS_S = 1.0
_CLOSE_GRACE_S = 10.0
# Failures in a row, without a step in between, after which it is of no use to start the ranks once more.
_MOST_FAILURES = 3


@dataclass(frozen=True, slots=True, eq=False)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    connection: Connection

    @staticmethod
    def start(assignment: Assignment) -> _Rank:
        ours, theirs = Pipe()
        number, size = assignment.number, assignment.size
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        variables = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size, "PYTHONPATH": path}
        env = os.environ | {name: str(value) for name, value in variables.items()}
        if (
            sys.platform == "linux"
        ):  # gloo looks for the address of the host's name otherwise; not all have one
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if assignment.config.device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=env,
                pass_fds=(theirs.fileno(),),
            )
        rank = _Rank(number, process, ours)
        rank.tell(pickle.dumps(assignment))
        return rank

    def tell(self, command: bytes) -> None:
        """A rank that is gone is no error here: whoever waits for its answer hears of it."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(command)

    def status(self, limit_s: float) -> int | None:
        """How its process ended, waiting so long for that; None if it has not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(limit_s)
        return None


@dataclass(frozen=True, slots=True)
class ParallelStep:
    """A step under way on all ranks."""

    _runner: ParallelRunner

    def result(self) -> StepResult:
        """Waits for rank 0. Raises RunnerRestarted if a rank failed and all were restarted, and ChildProcessError or
        UnsupportedModel if they could not be restarted."""
        return self._runner.next_result()


class ParallelRunner:
    """A `ModelRunner` whose work is done by `config.tensor_parallel_size` processes; used from one thread. After any
    error but RunnerRestarted it is of no more use: its ranks have been ended."""

    def __init__(self, config: EngineConfig) -> None:
        """Starts the ranks and waits until each has loaded its part. Raises UnsupportedModel, or ChildProcessError if a
        rank ended without saying why."""
        self._config = config
        self._size = config.tensor_parallel_size
        self._num_failures = 0  # in a row
        self._most_tokens: int | None = None  # of a forward pass
        self._start()

    def _start(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bros-ranks-")
        rendezvous = str(Path(self._directory.name) / "rendezvous")
        self._selector = selectors.DefaultSelector()
        self._ranks: list[_Rank] = []
        self._results: deque[StepResult] = deque()
        self._under_way: deque[int] = deque()  # steps, by their tokens
        # By rank; last words in the order in which they were heard, None of a rank that ended without any.
        self._infos: dict[int, RunnerInfo] = {}
        self._last_words: dict[int, Unsupported | Failed | None] = {}
        try:
            for number in range(self._size):
                told = Assignment(number, self._size, rendezvous, self._config, self._most_tokens)
                rank = _Rank.start(told)
                self._ranks.append(rank)
                self._selector.register(rank.connection, selectors.EVENT_READ, rank)
            while len(self._infos) < self._size:
                self._hear(None)
        except BaseException:
            self._kill()
            raise

    @property
    def info(self) -> RunnerInfo:
        """What all ranks agreed on."""
        info = self._infos[0]
        return replace(info, device=f"{self._size} x {info.device}")

    def launch(self, plan: StepPlan) -> ParallelStep:
        self._under_way.append(plan.num_tokens)
        self._tell(pickle.dumps(plan, pickle.HIGHEST_PROTOCOL))
        return ParallelStep(self)

    def execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()

    def next_result(self) -> StepResult:
        """Of the first step under way. Raises what `ParallelStep.result` does."""
        self._tell(RESULT)
        end_s = time.monotonic() + _STEP_LIMIT_S
        try:
            while not self._results:
                self._hear(end_s - time.monotonic())
        except ChildProcessError as error:
            self._start_anew(error)
        self._num_failures = 0
        self._under_way.popleft()
        return self._results.popleft()

    def _start_anew(self, error: OSError) -> NoReturn:
        """After the ranks have been ended. The new ones hold as much as those did, for the scheduler counts on it."""
        info = self._infos[0]
        self._config = replace(
            self._config, num_kv_blocks=info.num_blocks, num_host_slots=info.num_host_slots
        )
        if not self._shorten_passes():
            self._num_failures += 1
        while self._num_failures < _MOST_FAILURES:
            log.error("%s: all are started anew", error)
            try:
                self._start()
            except OSError as another:  # there may be no memory for a process either
                error = another
                self._num_failures += 1
                continue
            if self._infos[0] != info:
                self._kill()
                raise ChildProcessError(f"{error}, and what came up anew is another model: {self.info}")
            raise RunnerRestarted(str(error)) from error
        raise ChildProcessError(f"{error}; that makes {_MOST_FAILURES} failures in a row") from error

    def _shorten_passes(self) -> bool:
        """Where memory ran out amid a pass, which had no more tokens than its step, none of its size is tried again."""
        words = self._last_words.values()
        if not any(isinstance(last, Failed) and last.is_out_of_memory for last in words):
            return False
        before = max(self._under_way)
        if self._most_tokens is not None:
            before = min(before, self._most_tokens)
        if before > 1:
            self._most_tokens = before // 2
        return before > 1

    def close(self) -> None:
        self._tell(CLOSE)
        end_s = time.monotonic() + _CLOSE_GRACE_S
        for rank in self._ranks:
            rank.status(max(0.0, end_s - time.monotonic()))
        self._kill()

    def _kill(self) -> None:
        """What is left of the ranks, and of what they needed."""
        self._selector.close()
        for rank in self._ranks:
            rank.connection.close()
            rank.process.kill()
        for rank in self._ranks:
            rank.process.wait()
        self._directory.cleanup()

    def _tell(self, command: bytes) -> None:
        for rank in self._ranks:
            rank.tell(command)

    def _hear(self, limit_s: float | None) -> None:
        """`_listen`, but raises where a rank has ended, or none says anything."""
        if not self._listen(limit_s):
            self._kill()
            raise ChildProcessError(f"the {self._size} ranks have not answered for {_STEP_LIMIT_S:g} s")
        if self._last_words:
            self._fail()

    def _listen(self, limit_s: float | None) -> bool:
        """Takes in what ranks say, waiting for it up to `limit_s` (None: for ever). False if that is nothing."""
        heard = self._selector.select(None if limit_s is None else max(0.0, limit_s))
        for key, _ in heard:
            rank: _Rank = key.data
            try:
                message = rank.connection.recv()
            except (EOFError, OSError):
                message = None
            if isinstance(message, Ready):
                self._infos[rank.number] = message.info
            elif isinstance(message, StepResult):
                self._results.append(message)
            else:
                self._last_words[rank.number] = message
                self._selector.unregister(rank.connection)
        return bool(heard)

    def _fail(self) -> NoReturn:
        """Ends all ranks and raises for the one that is to blame: one that died, for others fail in consequence, or
        else the first that spoke."""
        end_s = time.monotonic() + _LAST_WORDS_S
        while len(self._last_words) < self._size and self._listen(end_s - time.monotonic()):
            pass
        died = [number for number, words in self._last_words.items() if words is None]
        number = died[0] if died else next(iter(self._last_words))
        status = self._ranks[number].status(_LAST_WORDS_S)
        self._kill()
        match self._last_words[number]:
            case Unsupported(message):
                raise UnsupportedModel(message)
            case Failed(message, trace):
                log.error("rank %d:\n%s", number, trace.rstrip())
                how = f"failed: {message}"
            case None if status is not None and status < 0:
                how = f"was killed by {signal.Signals(-status).name}"
            case None:
                how = f"ended with status {status}"
        raise ChildProcessError(f"rank {number} of {self._size} {how}; the others cannot go on without it")
