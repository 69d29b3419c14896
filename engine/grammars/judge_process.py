"""The program of a judge: `python -m engine.grammars.judge_process VOCABULARY`.

It compiles each grammar that it reads from standard input, one JSON object per line, computes a few masks, and answers
with one line: null, or why the grammar cannot be used. It is a process because a grammar may exhaust the stack, the
memory or the patience of whoever compiles it; then only this process ends.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer

from engine.core.terms import Grammar
from engine.grammars.compiling import UnusableGrammar, compile_grammar, thread_with_stack
from engine.grammars.tokenizer import Vocabulary

# The engine compiles with four times this stack, and so do the threads that compute masks.
STACK_BYTES = 4 << 20
MEMORY_BYTES = 8 << 30  # of address space, most of which is never used
MAX_GROWTH_BYTES = 128 << 20  # by one grammar, of which an engine keeps hundreds
# Of processor time, so that it does not matter what else runs. Then SIGPROF ends the process.
COMPILE_LIMIT_S = 5.0
# Of processor time, for one mask of a few in a random output. A thousandth of this is usual.
MAX_MASK_S = 0.1
NUM_TRIED_TOKENS = 32


def main() -> None:
    os.nice(19)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    vocabulary = Vocabulary(**json.loads(Path(sys.argv[1]).read_text()))
    tokenizer = vocabulary.build()
    thread_with_stack(STACK_BYTES, lambda: _serve(tokenizer), "judge").join()


def _serve(tokenizer: LLTokenizer) -> None:
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, COMPILE_LIMIT_S)
        problem = _problem(Grammar(**json.loads(line)), tokenizer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(problem), flush=True)


def _problem(grammar: Grammar, tokenizer: LLTokenizer) -> str | None:
    before_bytes = _peak_bytes()
    try:
        _try_tokens(compile_grammar(grammar, tokenizer))
        if _peak_bytes() - before_bytes > MAX_GROWTH_BYTES:
            return "it takes too much memory"
    except UnusableGrammar as error:
        return str(error)
    except MemoryError:
        return "it takes too much memory"
    return None


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _try_tokens(matcher: LLMatcher) -> None:
    """Follows a random output for a few tokens. Raises UnusableGrammar if a mask takes too long."""
    rng = random.Random(0)
    for _ in range(NUM_TRIED_TOKENS):
        started_s = time.thread_time()
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if time.thread_time() - started_s > MAX_MASK_S:
            raise UnusableGrammar("it is too complex: the tokens that may come next take too long to find")
        if matcher.is_error():
            raise UnusableGrammar(f"it is too complex: {matcher.get_error()}")
        if matcher.is_stopped() or not mask:
            return
        allowed = mask >> rng.randrange(mask.bit_length())
        skipped = mask.bit_length() - allowed.bit_length()
        matcher.consume_token(skipped + (allowed & -allowed).bit_length() - 1)


if __name__ == "__main__":
    main()
