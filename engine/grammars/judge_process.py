"""The program of a judge: `python -m engine.grammars.judge_process VOCABULARY SOCKET...`.

From each socket (a number of an open file) it reads grammars, one JSON object per line. A process of its own compiles
each and computes a few masks, because a grammar may exhaust the stack, the memory or the patience of whoever compiles
it; then only that process ends. The answer is one line:

    {"problem": null, or why the grammar cannot be used, "is_unfinished": whether its time was up first,
     "cpu_s": the processor time that this took}

All processes are forks of this one, which share its tokenizer: one begins and ends within milliseconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engine.core.terms import Grammar
from engine.grammars.compiling import UnusableGrammar, compile_grammar, thread_with_stack, wait_for_idle_cpu
from engine.grammars.contract import Problem
from engine.grammars.tokenizer import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# The engine compiles with four times this stack, and so do the threads that compute masks.
STACK_BYTES = 4 << 20
MEMORY_BYTES = 8 << 30  # of address space, most of which is never used
MAX_GROWTH_BYTES = 128 << 20  # by one grammar, of which an engine keeps hundreds
# Of processor time, for one mask of a few in a random output. A thousandth of this is usual.
MAX_MASK_S = 0.1
NUM_TRIED_TOKENS = 32
# How long a process may wait for idle CPU, in multiples of the processor time that it may take: on a machine without
# any, compilation takes a twentieth of a core.
IDLE_PATIENCE, LEAST_IDLE_S = 20, 1.0
TOO_MUCH_MEMORY = Problem("it takes too much memory", is_costly=True)


def main() -> None:
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    vocabulary = Vocabulary(**json.loads(Path(sys.argv[1]).read_text()))
    tokenizer = vocabulary.build()
    sockets = [socket.socket(fileno=int(number)) for number in sys.argv[2:]]
    for own in sockets:
        if os.fork() == 0:
            for other in sockets:
                if other is not own:
                    other.close()
            _serve(own, tokenizer)
            return
    for each in sockets:
        each.close()
    for _ in sockets:
        os.wait()


def _serve(connection: socket.socket, tokenizer: LLTokenizer) -> None:
    """Judges one grammar after the other until the other end of the connection closes."""
    for line in connection.makefile("rb"):
        asked = json.loads(line)
        answer = None
        if asked["is_idle"]:
            patience_s = max(LEAST_IDLE_S, IDLE_PATIENCE * asked["limit_s"])
            answer = _answer(asked, tokenizer, patience_s)
        if answer is None:
            answer = _answer(asked | {"is_idle": False}, tokenizer, None)
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _answer(asked: dict[str, Any], tokenizer: LLTokenizer, patience_s: float | None) -> dict[str, Any] | None:
    """The answer of a process that judges a grammar; None if it got no CPU in this time."""
    answer, to_answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _judge(asked, tokenizer, to_answer)
    os.close(to_answer)
    with os.fdopen(answer, "rb") as pipe:
        has_ended = bool(select.select([pipe], [], [], patience_s)[0])
        if not has_ended:
            os.kill(pid, signal.SIGKILL)
        found = pipe.read()
    _, status, used = os.wait4(pid, 0)
    if not has_ended and not found:
        return None
    problem, is_unfinished = (json.loads(found), False) if found else _end(os.waitstatus_to_exitcode(status))
    return {"problem": problem, "is_unfinished": is_unfinished, "cpu_s": used.ru_utime + used.ru_stime}


def _end(code: int) -> tuple[dict[str, Any] | None, bool]:
    """The problem of a grammar whose process ended without an answer, and whether its time was up."""
    if code == -signal.SIGPROF:
        return None, True
    how = signal.Signals(-code).name if code < 0 else f"status {code}"
    return _values(Problem(f"it is too complex: its compiler ended ({how})", is_costly=True)), False


def _values(problem: Problem | None) -> dict[str, Any] | None:
    return None if problem is None else dataclasses.asdict(problem)


def _judge(asked: dict[str, Any], tokenizer: LLTokenizer, to_answer: int) -> NoReturn:
    """Judges one grammar, in a process of its own, which ends here or by SIGPROF."""
    grammar = Grammar(asked["kind"], asked["text"])
    if asked["is_idle"]:
        os.nice(19)
        wait_for_idle_cpu()

    def judge() -> None:
        answer = json.dumps(_values(_problem(grammar, tokenizer))).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(to_answer, answer)  # less than a pipe holds
        os._exit(0)

    # Of processor time, so that it does not matter what else runs.
    signal.setitimer(signal.ITIMER_PROF, asked["limit_s"])
    thread_with_stack(STACK_BYTES, judge, "judge").join()
    os._exit(1)


def _problem(grammar: Grammar, tokenizer: LLTokenizer) -> Problem | None:
    before_bytes = _peak_bytes()
    try:
        _try_tokens(compile_grammar(grammar, tokenizer))
    except UnusableGrammar as error:
        return error.problem
    except MemoryError:
        return TOO_MUCH_MEMORY
    return TOO_MUCH_MEMORY if _peak_bytes() - before_bytes > MAX_GROWTH_BYTES else None


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _try_tokens(matcher: LLMatcher) -> None:
    """Follows a random output for a few tokens. Raises UnusableGrammar if a mask takes too long."""
    rng = random.Random(0)
    for _ in range(NUM_TRIED_TOKENS):
        started_s = time.thread_time()
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if time.thread_time() - started_s > MAX_MASK_S:
            raise UnusableGrammar(
                "it is too complex: the tokens that may come next take too long to find", is_costly=True
            )
        if matcher.is_error():
            raise UnusableGrammar(f"it is too complex: {matcher.get_error()}", is_costly=True)
        if matcher.is_stopped() or not mask:
            return
        allowed = mask >> rng.randrange(mask.bit_length())
        skipped = mask.bit_length() - allowed.bit_length()
        matcher.consume_token(skipped + (allowed & -allowed).bit_length() - 1)


if __name__ == "__main__":
    main()
