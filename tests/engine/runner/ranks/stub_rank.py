"""The program of a rank without a model, to be run instead of `engine.runner.ranks.rank_process`.

The first token id of a plan says what rank 1 does: `DIE`, `OUT_OF_MEMORY`, or `ANSWER`. The token in an answer is the
maximum length of a pass that rank 0 was given (0: none). Ranks have as many KV blocks as the configuration says, or, if
it leaves that to them, a different number at each start. With STUB_RANK=another they report a different model at each
start. Use it to test how ranks are started, fail and are restarted; for tests that need tokens of a model, use the real
program or `short_rank`.
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
    with suppress(EOFError):  # the engine ends its ranks without a command
        main()
