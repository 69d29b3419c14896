"""A process that measures some parts of a run on a GPU host; `benchmarks.gpu` starts it.

A faulty kernel destroys the CUDA context of its process, and a hanging one never returns. Parts therefore save their
results to the file of the run, and parts that could affect each other run in separate processes.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import tempfile
import threading
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
    parser.add_argument("--end", type=float, required=True, help="end of the run on the monotonic clock")
    parser.add_argument("--now", required=True, help="parts to measure now")
    parser.add_argument("--all", required=True, help="all parts of the run")
    parser.add_argument("--device", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--parent", type=int, help="a pipe that the parent process holds open")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        threading.Thread(target=end_with_parent, args=(arguments.parent,), daemon=True).start()
    run = Run(arguments.result, {name: SHARES[name] for name in arguments.all.split(",")}, arguments.end)
    logger = logging.getLogger("engine")
    logger.setLevel(logging.INFO)
    logger.addHandler(run.log)
    chosen = arguments.now.split(",")
    scale = TINY if arguments.tiny else FULL
    if chosen == ["correctness"]:
        measure_correctness(run, arguments.device, arguments.tiny)
        return
    ceilings = measure_ceilings(run, arguments.device, scale)
    if "correctness" in chosen:
        measure_correctness(run, arguments.device, arguments.tiny)
    models = arguments.models.split(",")
    if served := [part for part in chosen if part in ("steps", "alone", "hybrid")]:
        measure_engine(run, served, models, arguments.device, scale, ceilings, arguments.quantization)
    if "kernels" in chosen:
        measure_kernels(run, arguments.device, scale, ceilings)
    if others := [part for part in chosen if part in ("others", "more")]:
        measure_engine(run, others, models, arguments.device, scale, ceilings, arguments.quantization)


def end_with_parent(pipe: int) -> None:
    """Kill this process and all that it started, once its parent has ended in whatever way: the end of the pipe that
    the parent holds is closed then. Otherwise they would keep the GPU."""
    os.read(pipe, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


# Each function imports its dependencies when it is called, because unneeded ones would take seconds.


def measure_correctness(run: Run, device: str, is_tiny: bool) -> None:
    from benchmarks.gpu.correctness import run as checks

    attempt(run.part("correctness"), lambda part: checks.measure_correctness(part, device, is_tiny))


def measure_ceilings(run: Run, device: str, scale: Scale) -> Ceilings:
    """Return the ceilings; all floors need them, so they are measured if they are not known, chosen or not."""
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
    run: Run,
    chosen: list[str],
    models: list[str],
    device: str,
    scale: Scale,
    ceilings: Ceilings,
    quantization: str,
) -> None:
    import torch

    from benchmarks.gpu.engine import EngineBench

    with tempfile.TemporaryDirectory() as directory:
        bench = EngineBench(run, models, Path(directory), torch.device(device), scale, ceilings, quantization)
        if served := [name for name in chosen if name in bench.served_parts]:
            bench.measure_served(served)
        if "others" in chosen:
            attempt(run.part("others"), bench.measure_others)
        if "more" in chosen:
            attempt(run.part("more"), bench.measure_more)


def attempt(part: Part, work: Callable[[Part], object]) -> None:
    """Run a part, and record a failure of the whole part without affecting the others."""
    try:
        work(part)
    except Exception as error:
        part.fail(part.name, error)
    part.save()


if __name__ == "__main__":
    main()
