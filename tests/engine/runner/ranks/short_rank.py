"""The program of a rank with too little memory, to be run instead of `engine.runner.ranks.rank_process`.

It computes a real model. The environment variable SHORT_RANK contains a `Shortage` as JSON. Each rank writes the number
of tokens of each forward pass, including those that failed, one per line, to a file named by its number. Use it to test
what ranks do when memory runs out; for tests that need no model, use `stub_rank`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.runner.ranks import rank_process as rank
from engine.runner.ranks.memory_probe import LargestPass, MemoryProbe
from engine.runner.torch_runner import TorchRunner

BYTES_PER_TOKEN = 1000


@dataclasses.dataclass(frozen=True)
class Shortage:
    """Rank 1 has no memory for passes of more than `most_tokens` tokens. It notices this beforehand, in its memory
    probe, or in the middle of the pass if the shortage `is_hidden`. The ranks write their files to `directory`."""

    directory: str
    most_tokens: int
    is_hidden: bool = False

    def tell(self, setenv: Callable[[str, str], None]) -> None:
        setenv("SHORT_RANK", json.dumps(dataclasses.asdict(self)))

    def passes(self, number: int) -> list[int]:
        """The numbers of tokens that rank `number` has written."""
        return [int(line) for line in (Path(self.directory) / str(number)).read_text().split()]


def shorten(runner: TorchRunner, shortage: Shortage, number: int) -> None:
    is_short = number == 1
    own = runner._memory_probe
    assert own is not None
    assert own._largest.num_bytes == 0, "on a CPU it is unknown"
    largest = LargestPass(
        own._largest.num_tokens, own._largest.num_draws, own._largest.num_tokens * BYTES_PER_TOKEN
    )

    def allocate(num_bytes: int) -> None:
        if is_short and not shortage.is_hidden and num_bytes > shortage.most_tokens * BYTES_PER_TOKEN:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    forward = runner._forward.compute

    def noting(step: Any) -> torch.Tensor:
        num_tokens = len(step.token_ids)
        with (Path(shortage.directory) / str(number)).open("a") as notes:
            print(num_tokens, file=notes)
        if is_short and shortage.is_hidden and num_tokens > shortage.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return forward(step)

    runner._memory_probe = MemoryProbe(own._ranks, largest, allocate)
    runner._forward.compute = noting  # type: ignore[method-assign]


if __name__ == "__main__":
    load, shortage = rank.load_runner, Shortage(**json.loads(os.environ["SHORT_RANK"]))

    def load_short(*arguments: Any, **options: Any) -> TorchRunner:
        runner = load(*arguments, **options)
        shorten(runner, shortage, options["ranks"].number)
        return runner

    rank.load_runner = load_short
    rank.main()
