"""How fast is everything on a GPU, and are the targets met? One command measures it in a given time.

    python -m benchmarks.gpu --minutes 8 [--models llama-8b,qwen3-4b] [--parts kernels,steps] [--out benchmarks/results]
    python -m benchmarks.gpu --quantization fp8 --parts ceilings,steps      # with float8 weights, against their floors
    python -m benchmarks.gpu --device cpu --tiny      # the same code on any machine, in half a minute

It needs this repository, torch, triton, transformers and numpy, but no checkpoint, network or server. The models have
the shapes of well-known ones and random weights. The parts run in this order, each with its share of the time:

    ceilings     memory bandwidth, matrix rate, products by tokens, launches, copies to and from the host
    correctness  every Triton kernel against its reference
    steps        decoding, mixed steps and a long prompt against their floors; time by kernel; graphs against eager
                 steps; idle time between steps
    alone        documents alone, chats alone
    hybrid       both, by policy, with enough KV memory and with a quarter of it
    kernels      every Triton kernel against its floor, and against torch's own if there is one
    others       the same documents in transformers' continuous batching, and in vLLM if it is installed
    more         steps with float8 weights and KV, of the other models, and without CUDA graphs

The result, with the state of every target, is written after each measurement; benchmarks/gpu/README.md explains it. The
exit code is 1 if anything failed or computed a wrong result.
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

# Parts that share a process. A failure in one group does not affect the other groups.
GROUPS = (("ceilings",), ("correctness",), ("steps", "alone", "hybrid"), ("kernels",), ("others",), ("more",))
# A process is killed when its parts are this late. The grace period covers the last measurement that it began.
GRACE_S = 60.0


def main() -> int:
    arguments = parse_args()
    name, driver = device_name(arguments.device)
    file_name = f"gpu-{name.lower().replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    if arguments.device == "cpu":
        os.environ.setdefault(
            "TRITON_INTERPRET", "1"
        )  # lets the measuring processes run the kernels on a CPU
    end_s = time.monotonic() + 60 * arguments.minutes
    shares = {part: share for part, share in SHARES.items() if part in arguments.parts}
    run = Run(arguments.out / file_name, shares, end_s)
    run.result["device"] = {"name": name, "driver": driver}
    run.result["settings"] = {
        key: value for key, value in vars(arguments).items() if isinstance(value, str | int | float | list)
    }
    run.write()
    # On a CPU, no kernel can corrupt a process, and importing everything takes longer than measuring.
    groups = GROUPS if arguments.device == "cuda" else (tuple(SHARES),)
    for group in groups:
        left = [part for part in group if part in shares]
        while left:  # the remaining parts of a process that died run in a new one
            if time.monotonic() >= end_s:  # loading a model would take another minute
                run.note_skipped(left)
                break
            run = measure_apart(run.path, shares, end_s, left, arguments)
            left = [part for part in left if part not in run.result["parts"]]
    try:
        plot_path = plot(run.path)
    except Exception as error:  # the summary must be printed in any case
        plot_path = None
        print(f"no plot: {type(error).__name__}: {error}")
    print(*filter(None, [plot_path, run.summary()]), sep="\n")
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
    parser.add_argument("--tiny", action="store_true", help="use sizes that fit any machine")
    parser.add_argument(
        "--quantization",
        choices=["none", "fp8"],
        default="none",
        help="weights of all models, as in the engine",
    )
    parser.add_argument("--parts", type=names_among(SHARES), default=list(SHARES))
    parser.add_argument(
        "--models", type=names_among(MODELS), default=list(MODELS), help="models; the first one is served"
    )
    return parser.parse_args()


def names_among(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return an argument parser for comma-separated names among `known`."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown name {name!r}; choose from {', '.join(known)}")
        return names

    return parse


def device_name(device: str) -> tuple[str, str | None]:
    """Return the names of the device and its driver, without creating a context. Exits if there is no device."""
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
            sys.exit("torch finds no GPU; use --device cpu --tiny to run the code without one")
        return "gpu", None


def measure_apart(
    path: Path, shares: dict[str, float], end_s: float, parts: list[str], arguments: argparse.Namespace
) -> Run:
    """Measure parts in a separate process, which is killed if it is far too late. Returns the run afterwards."""
    late_s = Run(path, shares, end_s).end_of(parts) + GRACE_S
    command = [sys.executable, "-m", "benchmarks.gpu.parts", str(path), "--end", str(end_s)]
    command += ["--now", ",".join(parts), "--all", ",".join(shares), "--device", arguments.device]
    command += ["--models", ",".join(arguments.models), *(["--tiny"] if arguments.tiny else [])]
    command += ["--quantization", arguments.quantization]
    # The process and those that it starts end with this one, even if it is killed: see `parts.end_with_parent`.
    read_end, write_end = os.pipe()
    command += ["--parent", str(read_end)]
    process = subprocess.Popen(command, start_new_session=True, pass_fds=(read_end,))
    os.close(read_end)
    reason = None
    try:
        code = process.wait(late_s - time.monotonic())
        reason = f"its process ended with code {code}" if code else None
    except subprocess.TimeoutExpired:
        reason = f"killed {GRACE_S:.0f} s after its time was over"
    finally:  # including every process that it started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(write_end)
    run = Run(path, shares, end_s)
    begun = [name for name in parts if name in run.result["parts"]]
    if reason is not None:
        run.note_failure(begun[-1] if begun else parts[0], "process", reason)
        return run
    for name in parts:  # the process gave up, for example because a model could not be loaded
        if name not in begun:
            run.note_failure(name, "process", f"not started: see {begun[-1] if begun else 'above'}")
    return run


if __name__ == "__main__":
    sys.exit(main())
