"""All that is to be measured on a GPU host, by one command, in a given time.

    python -m benchmarks.gpu --minutes 8 [--models llama-8b,qwen3-4b] [--parts kernels,steps] [--out benchmarks/results]
    python -m benchmarks.gpu --device cpu --tiny      # the same code on any machine, in a minute or two

It needs this repository, torch, triton, transformers and numpy: no checkpoint, no network, no server.
Models have the shapes of well-known ones and random weights. In this order, each part with its share of the time:

    ceilings     memory bandwidth, matrix rate, launches, copies to and from the host
    correctness  every Triton kernel against its slow twin
    kernels      every Triton kernel against its floor, and against torch's own where there is one
    steps        decoding and a long prompt against their floors; where a step's time goes; idle time between steps
    alone        documents alone, chats alone
    hybrid       both, by policy, with enough KV memory and with a quarter of that
    others       the same documents by transformers' continuous batching, and by vLLM where it is installed
    more         steps with float8 KV, of the other models, and without CUDA graphs

The result is written after each measurement, with what it says of each target; benchmarks/gpu/README.md explains them.
Exits with 1 if anything failed or computed wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.gpu.plot import plot
from benchmarks.gpu.report import Run
from benchmarks.gpu.scale import MODELS, SHARES

# Parts of one process: what breaks in one of these does not break the others.
GROUPS = (("ceilings",), ("correctness",), ("kernels",), ("steps", "alone", "hybrid"), ("others",), ("more",))
# A process is ended when its parts are so late: longer than the last measurement that it may have begun.
GRACE_S = 60.0


def main() -> int:
    arguments = parse_args()
    name, driver = device_name(arguments.device)
    file_name = f"gpu-{name.lower().replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    if arguments.device == "cpu":
        os.environ.setdefault(
            "TRITON_INTERPRET", "1"
        )  # for the processes that measure: kernels run on a CPU then
    end_s = time.monotonic() + 60 * arguments.minutes
    shares = {part: share for part, share in SHARES.items() if part in arguments.parts}
    run = Run(arguments.out / file_name, shares, end_s)
    run.result["device"] = {"name": name, "driver": driver}
    run.result["settings"] = {
        key: value for key, value in vars(arguments).items() if isinstance(value, str | int | float | list)
    }
    run.write()
    # On a CPU nothing goes astray, and to import everything takes longer than to measure.
    groups = GROUPS if arguments.device == "cuda" else (tuple(SHARES),)
    for group in groups:
        left = [part for part in group if part in shares]
        while left:  # a process that dies leaves parts to another
            if time.monotonic() >= end_s:  # to load a model would take a minute more
                run.note_skipped(left)
                break
            run = measure_apart(run.path, shares, end_s, left, arguments)
            left = [part for part in left if part not in run.result["parts"]]
    try:
        picture = plot(run.path)
    except Exception as error:  # it must not cost the summary
        picture = None
        print(f"no picture: {type(error).__name__}: {error}")
    print(*filter(None, [picture, run.summary()]), sep="\n")
    return 0 if run.is_sound else 1


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that any machine can carry")
    parser.add_argument("--parts", type=names_among(SHARES), default=list(SHARES))
    parser.add_argument(
        "--models", type=names_among(MODELS), default=list(MODELS), help="the first is served"
    )
    return parser.parse_args()


def names_among(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {name!r}; there are {', '.join(known)}")
        return names

    return parse


def device_name(device: str) -> tuple[str, str | None]:
    """Of the device and of its driver, without a context on it. Exits if there is none."""
    if device == "cpu":
        return "cpu", None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        name, _, driver = shown.splitlines()[0].partition(", ")
        return name, driver
    except (OSError, subprocess.SubprocessError, IndexError):
        import torch

        if not torch.cuda.is_available():
            sys.exit("there is no GPU that torch can use; --device cpu --tiny tries the code without one")
        return "gpu", None


def measure_apart(
    path: Path, shares: dict[str, float], end_s: float, parts: list[str], arguments: argparse.Namespace
) -> Run:
    """In a process of their own, which is ended when they are far too late. Returns the run as it is then."""
    late_s = Run(path, shares, end_s).end_of(parts) + GRACE_S
    command = [sys.executable, "-m", "benchmarks.gpu.parts", str(path), "--end", str(end_s)]
    command += ["--now", ",".join(parts), "--all", ",".join(shares), "--device", arguments.device]
    command += ["--models", ",".join(arguments.models), *(["--tiny"] if arguments.tiny else [])]
    process = subprocess.Popen(command, start_new_session=True)
    reason = None
    try:
        code = process.wait(late_s - time.monotonic())
        reason = f"its process ended with code {code}" if code else None
    except subprocess.TimeoutExpired:
        reason = f"ended after {GRACE_S:.0f} s more than its time"
    finally:  # with whatever it has started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run = Run(path, shares, end_s)
    begun = [name for name in parts if name in run.result["parts"]]
    if reason is not None:
        run.note_failure(begun[-1] if begun else parts[0], "process", reason)
        return run
    for name in parts:  # it gave them up, as where a model cannot be loaded
        if name not in begun:
            run.note_failure(name, "process", f"not begun: see {begun[-1] if begun else 'above'}")
    return run


if __name__ == "__main__":
    sys.exit(main())
