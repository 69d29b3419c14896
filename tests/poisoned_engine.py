"""The program of an engine whose process dies by a signal in each step that computes a certain prompt.

It runs the simulated runner. The environment variable POISON says in JSON which `signal`, and which consecutive
`token_ids` a prompt must contain. Run `python -m tests.poisoned_engine` instead of `python -m engine`. Where a test
does not choose the program, a `sitecustomize` module calls `poison` (`write_sitecustomize`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from engine.core.plan import StepPlan
from engine.runner import simulated
from engine.runner.simulated import SimulatedRunner, SimulatedStep

SITECUSTOMIZE = """
import sys
if ["-m", "engine"] in [sys.orig_argv[i : i + 2] for i in range(len(sys.orig_argv))]:
    from tests.poisoned_engine import poison
    poison()
"""


class DeadlyRunner(SimulatedRunner):
    """Ends the process when it computes a poisoned prompt, or what follows it."""

    def launch(self, plan: StepPlan) -> SimulatedStep:
        poison = json.loads(os.environ["POISON"])
        prompts = {start.row: start.token_ids[: start.num_prompt_tokens] for start in plan.row_starts}
        for row in plan.rows:
            start = self._row_start[row]
            if row not in prompts and start is not None:
                prompts[row] = start.token_ids[: start.num_prompt_tokens]
        for row in plan.rows:
            if _contains(prompts[row], poison["token_ids"]):
                os.kill(os.getpid(), poison["signal"])
        return super().launch(plan)


def _contains(prompt: list[int], part: list[int]) -> bool:
    return any(prompt[i : i + len(part)] == part for i in range(len(prompt)))


def poison() -> None:
    """Make the engines of this process use the deadly runner."""
    simulated.SimulatedRunner = DeadlyRunner  # type: ignore[misc]


def write_sitecustomize(directory: Path) -> str:
    """Write a module that poisons each process of `python -m engine`. Returns the PYTHONPATH by which it is found."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return os.pathsep.join([str(directory), str(Path(__file__).parent.parent)])


if __name__ == "__main__":
    from engine.__main__ import main

    poison()
    sys.exit(main())
