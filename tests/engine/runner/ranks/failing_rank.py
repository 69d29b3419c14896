"""The program of a rank on which certain requests raise an error, run instead of `engine.runner.ranks.rank_process`.

It computes a real model. The environment variable FAILING_RANKS lists the numbers of the ranks, separated by commas, on
which a draw raises an error if it is for a request whose `logit_bias` is `POISON`.
"""

from __future__ import annotations

import os
from typing import Any

from engine.core.terms import SamplingParams
from engine.runner.ranks import rank_process as rank
from engine.runner.torch_runner import TorchRunner

POISON = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, logit_bias=((7, -1.0),))


def poison(runner: TorchRunner) -> None:
    draw, start = runner._sampler.draw, runner._sampling.start
    poisoned: set[int] = set()

    def noting(row_start: Any) -> None:
        start(row_start)
        (poisoned.add if row_start.sampling.logit_bias == POISON.logit_bias else poisoned.discard)(
            row_start.row
        )

    def failing(logits: Any, rows: Any, num_outputs: Any, masks: Any = None, earlier: Any = None) -> Any:
        if not poisoned.isdisjoint(rows.tolist()):
            raise IndexError("index 151645 is out of bounds for dimension 0 with size 320")
        return draw(logits, rows, num_outputs, masks, earlier)

    runner._sampling.start = noting  # type: ignore[method-assign]
    runner._sampler.draw = failing  # type: ignore[method-assign]


if __name__ == "__main__":
    load = rank.load_runner

    def load_poisoned(*arguments: Any, **options: Any) -> TorchRunner:
        runner = load(*arguments, **options)
        if str(options["ranks"].number) in os.environ["FAILING_RANKS"].split(","):
            poison(runner)
        return runner

    rank.load_runner = load_poisoned
    rank.main()
