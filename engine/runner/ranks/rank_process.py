"""The program of one rank: `python -m engine.runner.ranks.rank_process FD`.

`RankGroup` starts it and holds the other end of the socket FD. The process repeats the calls that the engine makes to
its runner, in the same order, on its own part of the model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from multiprocessing.connection import Connection
from queue import SimpleQueue

import torch
from transformers.utils import logging as transformers_logging

from engine.grammars.contract import TooManyGrammars
from engine.runner.base import UnsupportedModel
from engine.runner.loading import load_runner
from engine.runner.model.checkpoint import resolve_device
from engine.runner.ranks.messages import CLOSE, RESULT, Assignment, Failed, Ready, Unsupported
from engine.runner.ranks.tensor_parallel import Ranks
from engine.runner.step_outputs import TorchStep


def main() -> None:
    # A signal to the whole process group is meant for the engine, which ends its ranks when it has finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    assignment: Assignment = connection.recv()
    logging.basicConfig(
        level=logging.WARNING if assignment.number else logging.INFO,
        format=f"%(asctime)s %(levelname)s %(name)s (rank {assignment.number}): %(message)s",
    )
    if assignment.number:  # transformers would repeat its messages for every part of the model
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    commands: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, commands), daemon=True).start()
    try:
        _serve(assignment, connection, commands)
    except UnsupportedModel as error:
        connection.send(Unsupported(str(error)))
    except BaseException as error:
        is_out_of_memory = isinstance(error, torch.OutOfMemoryError)
        connection.send(Failed(f"{type(error).__name__}: {error}", traceback.format_exc(), is_out_of_memory))
    else:
        os._exit(0)  # the regular exit of an interpreter with this much loaded takes seconds
    os._exit(1)  # without leaving the group: the others may wait for this rank in the middle of a step


def _serve(assignment: Assignment, connection: Connection, commands: SimpleQueue[bytes]) -> None:
    ranks = _join(assignment)
    runner = load_runner(assignment.config, ranks=ranks)
    if assignment.max_pass_tokens is not None:
        runner.limit_passes(assignment.max_pass_tokens)
    connection.send(Ready(runner.info))
    under_way: deque[TorchStep] = deque()
    while (command := commands.get()) != CLOSE:
        if command != RESULT:
            order = pickle.loads(command)
            if isinstance(order, tuple):
                with contextlib.suppress(TooManyGrammars):  # it is compiled when a row needs it
                    runner.grammars.begin(*order)
            else:
                under_way.append(runner.launch(order))
            continue
        result = under_way.popleft().result()
        if ranks.number == 0:
            connection.send(result)
    runner.close()
    ranks.leave()


def _receive(connection: Connection, commands: SimpleQueue[bytes]) -> None:
    """Receives commands while others are carried out, so that the engine never waits to send one.

    Ends the process when the engine ends, even if the main thread waits for something.
    """
    try:
        while True:
            commands.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


def _join(assignment: Assignment) -> Ranks:
    device, size = resolve_device(assignment.config.device), assignment.size
    if device.type == "cuda":
        num_gpus = torch.cuda.device_count()
        if num_gpus < size:
            raise UnsupportedModel(
                f"--tensor-parallel-size is {size}, but torch sees {num_gpus} GPU{'s' * (num_gpus != 1)}: lower "
                "it, or make more of them visible (CUDA_VISIBLE_DEVICES)"
            )
        device = torch.device("cuda", assignment.number)
        torch.cuda.set_device(device)  # from now on, "cuda" means this one
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    return Ranks.join(assignment.rendezvous, assignment.number, size, device)


if __name__ == "__main__":
    main()
