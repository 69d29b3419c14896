"""A rank's process without a model, in place of `engine.runner.ranks.rank_process`.

What rank 1 does at a step is the first token id of its plan: `DIE`, `OUT_OF_MEMORY` or anything else. An answer's token
is what rank 0 was told of how long passes may be (0: nothing). They hold as many KV blocks as they are asked to, or, if
they may choose, never the same number twice. With STUB_RANK=another they are another model at each start.
"""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from engine.core.plan import StepPlan, StepResult
from engine.runner.base import RunnerInfo
from engine.runner.ranks.messages import CLOSE, RESULT, Assignment, Failed, Ready

ANSWER, DIE, OUT_OF_MEMORY = range(3)
EXIT_STATUS = 9


def step(what: int, num_tokens: int = 1) -> StepPlan:
    return StepPlan([0], [0], [num_tokens], [True], [what] * num_tokens, list(range(num_tokens)))


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    assignment: Assignment = connection.recv()
    num_blocks = assignment.config.num_kv_blocks or os.getppid() + os.getpid()
    vocab_size = os.getpid() if os.environ.get("STUB_RANK") == "another" else 500
    connection.send(Ready(RunnerInfo(num_blocks, 4, 8, 128, vocab_size, "stub", "none", num_host_slots=7)))
    for command in iter(connection.recv_bytes, CLOSE):
        if command == RESULT:
            if not assignment.number:
                connection.send(StepResult([assignment.max_pass_tokens or 0], [False]))
            continue
        plan: StepPlan = pickle.loads(command)
        if plan.token_ids[0] not in (DIE, OUT_OF_MEMORY):
            continue
        if not assignment.number:
            connection.send(Failed("RuntimeError: Connection closed by peer", ""))
        elif plan.token_ids[0] == OUT_OF_MEMORY:
            connection.send(Failed("OutOfMemoryError: CUDA out of memory", "", True))
        sys.exit(EXIT_STATUS)


if __name__ == "__main__":
    with suppress(EOFError):  # of an engine that ends its ranks without a word
        main()
