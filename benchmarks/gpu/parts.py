"""Some parts of a run on a GPU host, in a process of their own, which `benchmarks.gpu` starts.

A kernel that goes astray takes its process's context with it, and one that hangs never comes back: so parts leave what
they measured in the run's file, and those that may break each other do not share a process.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.report import Part, Run
from benchmarks.gpu.scale import FULL, SHARES, TINY, Scale

if TYPE_CHECKING:
    from benchmarks.gpu.ceilings import Ceilings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--end", type=float, required=True, help="of the run, by the monotonic clock")
    parser.add_argument("--now", required=True, help="parts to measure")
    parser.add_argument("--all", required=True, help="parts of the run")
    parser.add_argument("--device", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    run = Run(arguments.result, {name: SHARES[name] for name in arguments.all.split(",")}, arguments.end)
    logging.getLogger("engine").addHandler(run.warnings)
    chosen = arguments.now.split(",")
    scale = TINY if arguments.tiny else FULL
    if chosen == ["correctness"]:
        measure_correctness(run, arguments.device, arguments.tiny)
        return
    ceilings = measure_ceilings(run, arguments.device, scale)
    if "correctness" in chosen:
        measure_correctness(run, arguments.device, arguments.tiny)
    if "kernels" in chosen:
        measure_kernels(run, arguments.device, scale, ceilings)
    if set(chosen) & {"steps", "alone", "hybrid", "others", "more"}:
        measure_engine(run, chosen, arguments.models.split(","), arguments.device, scale, ceilings)


# Each imports what it needs when it is called: what it does not need takes seconds.


def measure_correctness(run: Run, device: str, is_tiny: bool) -> None:
    from benchmarks.gpu.correctness import run as checks

    attempt(run.part("correctness"), lambda part: checks.measure_correctness(part, device, is_tiny))


def measure_ceilings(run: Run, device: str, scale: Scale) -> Ceilings:
    """Unless they are known, they are measured whether chosen or not, for all floors need them."""
    import torch

    from benchmarks.gpu.ceilings import ceilings_of
    from benchmarks.gpu.timing import Stopwatch

    return ceilings_of(run, Stopwatch(torch.device(device)), scale)


def measure_kernels(run: Run, device: str, scale: Scale, ceilings: Ceilings) -> None:
    import torch

    from benchmarks.gpu import kernels
    from benchmarks.gpu.timing import Stopwatch

    watch = Stopwatch(torch.device(device))
    attempt(run.part("kernels"), lambda part: kernels.measure_kernels(part, watch, ceilings, scale))


def measure_engine(
    run: Run, chosen: list[str], models: list[str], device: str, scale: Scale, ceilings: Ceilings
) -> None:
    import torch

    from benchmarks.gpu.engine import EngineBench

    with tempfile.TemporaryDirectory() as directory:
        bench = EngineBench(run, models, Path(directory), torch.device(device), scale, ceilings)
        if served := [name for name in chosen if name in bench.served_parts]:
            bench.measure_served(served)
        if "others" in chosen:
            attempt(run.part("others"), bench.measure_others)
        if "more" in chosen:
            attempt(run.part("more"), bench.measure_more)


def attempt(part: Part, work: Callable[[Part], object]) -> None:
    """A part that fails as a whole must not take the others with it."""
    try:
        work(part)
    except Exception as error:
        part.fail(part.name, error)
    part.save()


if __name__ == "__main__":
    main()
